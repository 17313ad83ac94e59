"""What an evaluation task is, and the model that it evaluates."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from align.evaluate.result import Result
from align.io.directory import load_network
from align.io.manifest import stage_of, weights_fingerprint
from align.model.gpt import GPT
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import answers_chats


@dataclass(frozen=True)
class Subject:
    """The model under evaluation, loaded when a task first needs it.

    Attributes:
        directory: model directory.
        device: of the network, in torch's notation.
        seed: of sampling.
        batch_size: responses sampled at once.
        folder: of the logs from which an interrupted evaluation resumes.
    """

    directory: Path
    device: str
    seed: int
    batch_size: int
    folder: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return Tokenizer.load(self.directory)

    @cached_property
    def network(self) -> GPT:
        """In evaluation mode, on the device.

        Raises:
            ValueError: the directory holds no language model that align can read.
        """
        return load_network(self.directory).eval().to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, in hexadecimal."""
        return weights_fingerprint(self.directory)

    @cached_property
    def key(self) -> str:
        """Names what responses and log-likelihoods depend on besides the request."""
        kind = self.device.partition(":")[0]
        return f"{self.fingerprint[:16]}-{self.tokenizer.fingerprint[:16]}-{kind}-{self.seed}"

    @cached_property
    def is_chat(self) -> bool:
        """Whether the model has learnt its chat template; one that align only pretrained has not."""
        return answers_chats(self.tokenizer, stage_of(self.directory))


class EvalTask(ABC):
    """A task of align's own, for what lm-evaluation-harness does not have.

    A task is a frozen dataclass whose fields are its settings. ``align eval --tasks`` names it by its class, with
    settings as in ``Perplexity:file=texts.jsonl``, or by class path.
    """

    @property
    def name(self) -> str:
        """What results call the task."""
        return type(self).__name__

    @abstractmethod
    def run(self, subject: Subject, *, limit: int | None) -> Result:
        """Evaluate a model.

        Args:
            subject: the model.
            limit: number of items, from the first; None: all.

        Raises:
            ValueError: a file can't be read, or the model can't do the task.
        """
