"""What an engine is asked and what it answers; needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from align.generation.sampling_config import SamplingConfig

Reason = Literal["stop", "length", "failed"]


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        text: whole characters only; may be empty at the end.
        tokens: sampled so far, a stop token included.
        reason: why the answer is over: ``stop`` (a stop token or stop sequence), ``length`` (as many tokens as were
            asked for or as fit) or ``failed``; None while it goes on.
        error: what failed.
    """

    text: str
    tokens: int
    reason: Reason | None = None
    error: str = ""


@dataclass(frozen=True)
class Request:
    """What to answer.

    Attributes:
        prompt: token ids.
        sampling: how tokens are drawn, and how many.
        seed: of this answer's random numbers.
        stop: texts that end the answer and are left out of it.
    """

    prompt: Sequence[int]
    sampling: SamplingConfig
    seed: int = 0
    stop: tuple[str, ...] = ()


class EngineFull(Exception):
    """As many requests wait as may."""


class EngineFailed(Exception):
    """The engine is closed, or has stopped for good because of an error."""


def check_prompt(prompt: Sequence[int], *, max_length: int, vocabulary: int) -> None:
    """Refuse a prompt that cannot be answered.

    Args:
        prompt: token ids.
        max_length: longest prompt and answer together, tokens.
        vocabulary: how many ids the network knows.

    Raises:
        ValueError: the prompt is empty, too long, or holds an id the network does not know.
    """
    if not 1 <= len(prompt) < max_length:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens; it must have at least 1 and at most {max_length - 1}, "
            f"to leave room for an answer in {max_length}"
        )
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise ValueError(f"the prompt holds an id outside the network's vocabulary of {vocabulary}")
