"""What checks look at: the samples of each split as training reads them, the tokenizer, the networks and the settings.

Plain values, so that a check is a pure function and a test can build any situation in a few lines.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from align.curate.minhash import Sketch, sketch
from align.tokenizer import Tokenizer

_FEW = 10
"""With fewer documents than this, their paragraphs are compared"""
_PARAGRAPH = re.compile(r"\n\s*\n")
_LEAST_WORDS = 8

Kind = Literal["texts", "chats", "pairs", "prompts", "feedback"]
"""What a record is: a document, a chat, a preference pair, a prompt, or a response with a label"""


class Row(NamedTuple):
    """A sequence of tokens as the network reads it, without padding.

    Attributes:
        ids: ``[n]`` int64.
        mask: ``[n]`` bool, True on targets.
    """

    ids: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Sample:
    """A record that training reads."""

    source: str
    """File or Hub id"""
    location: str
    """``line 3`` or ``record 3``"""
    prompt: str
    """Text before the last response; empty for a document"""
    responses: tuple[str, ...]
    """The responses of a chat; chosen and rejected; a document; nothing for a prompt"""
    rows: tuple[Row, ...]
    """One row; two for a pair"""
    length: int
    """Tokens of the longest row before truncation"""
    response_tokens: tuple[int, ...] = ()
    """Targets of each row before truncation"""
    roles: tuple[str, ...] = ()
    """Role of each message of a chat"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The record as it is in the file"""
    unread: tuple[str, ...] = ()
    """Fields with a value that neither the record format nor a reward reads"""
    truncated_prompt: int = 0
    """Tokens that truncation dropped from the prompt"""
    truncated_response: int = 0
    """Tokens that truncation dropped from the responses"""
    lost_end: int = 0
    """Responses whose end of turn was truncated"""
    unrendered: tuple[str, ...] = ()
    """What the chat template does not render"""
    unlike: str | None = ""
    """How it differs from what sampling makes of it; empty if it does not; None: not compared"""
    clipped: int = 0
    """Characters of a long document that were not tokenized"""
    label: bool | None = None
    """Of feedback: whether the response is desirable"""

    @cached_property
    def text(self) -> str:
        """All of it."""
        return "\n".join(filter(None, (self.prompt, *self.responses)))

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.source}: {self.location}"


class Dropped(NamedTuple):
    """A record that training can't use.

    Attributes:
        source: file or Hub id.
        location: line or record.
        reason: names the field and what is wrong.
        fields: the record, where it could be parsed.
    """

    source: str
    location: str
    reason: str
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.source}: {self.location}"

    @property
    def text(self) -> str:
        """The record; empty where it could not be parsed."""
        return str(dict(self.fields)) if self.fields else ""


class Unit(NamedTuple):
    """A text that is compared with others: a record, or a paragraph of one of few documents.

    Attributes:
        sample: that has it.
        text: of it.
        key: the text without regard to case and spaces.
    """

    sample: Sample
    text: str
    key: str


def plain(text: str) -> str:
    """A text without regard to case and spaces."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Split:
    """The records of train, validation or test."""

    name: str
    samples: Sequence[Sample]
    dropped: Sequence[Dropped] = ()
    unreadable: Sequence[str] = ()
    """Why files could not be read at all"""
    not_utf8: Mapping[str, int] = field(default_factory=dict)
    """File -> lines that are not UTF-8"""
    records: int | None = None
    """Records of the files, dropped ones included, where more were counted than read; None: all were read"""
    rows: int | None = None
    """Rows of an epoch where they are not one per sample, at the scale of what was read"""
    computed: int | None = None
    """Tokens that the network computes in an epoch where rows share some or repeat; None: all of them, once"""

    @property
    def scale(self) -> float:
        """Ratio of all records, or of the characters of long documents, to those read."""
        read = len(self.samples) + len(self.dropped)
        ratio = 1.0 if self.records is None or not read else max(1.0, self.records / read)
        if clipped := sum(sample.clipped for sample in self.samples):
            ratio *= 1 + clipped / sum(len(sample.text) for sample in self.samples)
        return ratio

    @cached_property
    def lengths(self) -> np.ndarray:
        """``[samples]`` int64 tokens of each sample's longest row before truncation."""
        return np.array([sample.length for sample in self.samples], np.int64)

    @cached_property
    def response_lengths(self) -> np.ndarray:
        """``[samples, rows]`` int64 targets of each row before truncation."""
        return np.array([sample.response_tokens for sample in self.samples], np.int64)

    @property
    def in_paragraphs(self) -> bool:
        """Whether paragraphs are compared, as there are but a few documents."""
        return 0 < len(self.samples) < _FEW and not any(sample.prompt for sample in self.samples)

    @cached_property
    def units(self) -> list[Unit]:
        """What is compared with others."""
        if not self.in_paragraphs:
            return [Unit(sample, sample.text, plain(sample.text)) for sample in self.samples]
        return [
            Unit(sample, part, plain(part))
            for sample in self.samples
            for part in _PARAGRAPH.split(sample.text)
            if len(part.split()) >= _LEAST_WORDS
        ]

    @cached_property
    def sketch(self) -> Sketch:
        """Of ``units``, for near duplicates."""
        return sketch([unit.text for unit in self.units])

    @property
    def tokens(self) -> int:
        """Tokens of all rows that training reads."""
        return sum(len(row.ids) for sample in self.samples for row in sample.rows)


@dataclass(frozen=True)
class Network:
    """A network that the stage loads, as its files describe it."""

    role: str
    """policy, reference, reward, gold or value"""
    source: str
    """Directory or Hub id; empty for a new network"""
    vocab_size: int
    """Rows of the embedding"""
    context: int
    """Most tokens of a row"""
    parameters: int
    """Adapters excluded"""
    tokenizer: Tokenizer | None = None
    """Of its directory; None: it has none"""
    scores: bool = False
    """Whether it is a reward model, by its architecture"""


@dataclass(frozen=True)
class Run:
    """The settings that decide how long and how a stage trains."""

    context: int = 256
    """Tokens the network reads at once"""
    batch_size: int = 8
    """Rows of a batch on each rank"""
    ranks: int = 1
    """Data-parallel ranks, as far as the recipe says"""
    accumulate: int = 1
    """Micro-batches of an optimizer step"""
    max_epochs: int = 1
    """Passes over the data, iterations of PPO; -1: no limit"""
    max_steps: int = -1
    """Optimizer steps; -1: no limit"""
    val_check_interval: float | int = 1.0
    """Batches between validations, or a share of the epoch"""
    check_val_every_n_epoch: int | None = 1
    """Epochs between validations; None counts batches across epochs"""
    warmup_steps: float | int = 0
    """Steps, or a share of the run if below 1"""
    lr: float | None = None
    """Peak learning rate; None: the default"""
    default_lr: float | None = None
    """What the stage would choose"""
    adapters: bool = False
    """Whether adapters train instead of the weights"""
    on_bad_record: str = "stop"
    """stop or skip"""
    has_validation: bool = True
    """Whether validation data is set"""
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)
    """Setting -> longest response that it samples, tokens"""
    rollout_tokens: int | None = None
    """Longest response of a rollout; None: the stage has no rollouts"""
    rollout_prompts: int | None = None
    """Prompts of an iteration"""
    rollout_steps: int | None = None
    """Optimizer steps of an iteration"""
    rollout_passes: int = 1
    """Passes over the responses of an iteration"""
    rollout_episodes: int = 0
    """Responses of an iteration"""
    other_reference: bool = False
    """Whether a reference that differs from the initial policy is allowed"""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Use -> estimated bytes of a training step"""
    free_memory: int | None = None
    """Bytes that are free on the device; None: unknown"""
    device: str = "cpu"
    """Where it trains, as far as this machine shows"""
    flops_per_token: int | None = None
    """Training FLOPs per token"""
    flops_per_second: float | None = None
    """Measured speed of matrix products here; None: not measured"""


@dataclass(frozen=True)
class Context:
    """Everything that the checks of one stage look at."""

    stage: str
    """Class name of the stage, such as SFT"""
    kind: Kind
    splits: Mapping[str, Split]
    tokenizer: Tokenizer
    run: Run = Run()
    networks: Sequence[Network] = ()
    others: Mapping[str, "Context"] = field(default_factory=dict)
    """Stages of the same pipeline that were read before this one"""
    name: str = ""
    """Of the stage in its pipeline; empty for a single recipe"""

    @property
    def train(self) -> Split:
        """The training split; empty if nothing could be read."""
        return self.splits.get("train", Split("train", ()))

    @property
    def policy(self) -> Network | None:
        """The network that is trained."""
        return next((network for network in self.networks if network.role == "policy"), None)

    @property
    def held_out(self) -> list[Split]:
        """Validation and test."""
        return [split for name, split in self.splits.items() if name != "train"]

    def samples(self) -> Iterator[Sample]:
        """The samples of all splits."""
        for split in self.splits.values():
            yield from split.samples

    @property
    def counted(self) -> bool:
        """Whether only responses are targets, so that masks tell prompts from responses."""
        return self.kind in ("chats", "pairs", "feedback")

    @cached_property
    def rows_per_epoch(self) -> int:
        """Rows of one pass over the training data."""
        split = self.train
        return round((split.rows if split.rows is not None else len(split.samples)) * split.scale)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one pass on each rank."""
        return -(-self.rows_per_epoch // (self.run.batch_size * self.run.ranks))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch of the Trainer."""
        if self.run.rollout_steps is not None:
            return self.run.rollout_steps
        return -(-self.batches_per_epoch // self.run.accumulate)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        limits = [self.run.max_steps] if self.run.max_steps >= 0 else []
        if self.run.max_epochs >= 0:
            limits.append(self.run.max_epochs * self.steps_per_epoch)
        return min(limits, default=0)

    @property
    def epochs(self) -> float:
        """Passes over the training data in the whole run."""
        if self.run.rollout_prompts is not None:
            iterations = self.steps / max(1, self.steps_per_epoch)
            return iterations * self.run.rollout_prompts / max(1, self.rows_per_epoch)
        return self.steps / max(1, self.steps_per_epoch)
