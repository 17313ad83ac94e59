"""The interface of rollout engines: programs that sample responses with the weights of a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from align.generation.responses import Responses
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer

OnProgress = Callable[[float], None]
"""Called now and then with the share of the work that is done, in [0, 1]; an exception from it ends the sampling"""


class EngineError(OSError):
    """An engine failed: it died, did not answer in time, or sampled with other weights than it was given."""


class Weights(NamedTuple):
    """A network, and what tells its weights from those of another moment.

    Attributes:
        network: unsharded.
        version: differs whenever the weights do.
    """

    network: GPT
    version: str


class Asked(NamedTuple):
    """What to sample: one response to each of B prompts.

    Attributes:
        prompts: B lists of token ids.
        sampling: temperature, filters and maximum length.
        seeds: B, one per response.
    """

    prompts: Sequence[Sequence[int]]
    sampling: SamplingConfig
    seeds: Sequence[int]


@dataclass(frozen=True)
class Crew:
    """The processes of a run that share its engines."""

    token: str = ""
    """Name of the run, the same in all of them; empty: a process of its own makes one up"""
    rank: int = 0
    """Index of this process"""
    ranks: int = 1
    """Number of processes"""
    leads: bool = True
    """Whether this process starts its node's engine and sends it weights"""
    wait: Callable[[], None] = lambda: None
    """Returns once all processes have called it"""


class Sampling(Protocol):
    """Responses that are being sampled."""

    def result(self, on_progress: OnProgress | None = None) -> Responses:
        """Wait for the responses.

        Raises:
            EngineError: the engine failed.
        """


class OpenEngine(ABC):
    """An engine that is ready to sample."""

    @abstractmethod
    def submit(self, weights: Weights, asked: Asked, on_progress: OnProgress | None = None) -> Sampling:
        """Begin to sample with these weights. The network may change as soon as this returns.

        With several processes, all of them must call it equally often.

        Args:
            weights: to sample with.
            asked: prompts, settings and seeds.
            on_progress: called while this waits.

        Raises:
            EngineError: the engine failed.
            ValueError: it can't sample this; a prompt is empty or leaves no room in the context.
        """

    def sample(self, weights: Weights, asked: Asked, on_progress: OnProgress | None = None) -> Responses:
        """``submit``, and wait for the responses."""
        return self.submit(weights, asked, on_progress).result(on_progress)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:  # noqa: B027 (our own has nothing to give back)
        """Give back what it holds: processes, files, connections."""


class Engine(ABC):
    """Settings of an engine."""

    exact: bool = True
    """Whether its log-probs are the trainer's up to rounding in one precision"""

    @property
    def identity(self) -> dict[str, str]:
        """What the responses depend on beside weights, prompts, settings and seeds; empty for our own."""
        return {"engine": type(self).__name__}

    @abstractmethod
    def open(self, tokenizer: Tokenizer, *, crew: Crew = Crew(), log: Path | None = None) -> OpenEngine:  # noqa: B008
        """Make it ready to sample.

        Args:
            tokenizer: of the networks that it will be given.
            crew: the processes that share it.
            log: file for what the engine prints; None: a temporary one.

        Raises:
            EngineError: it can't be started or reached.
        """
