"""Prompts: an instruction with constraints in words, and reading the constraints back."""

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from align.sandbox.constraints.constraint import Constraint, Request, compatible
from align.sandbox.constraints.kinds import KINDS
from align.sandbox.world import pick

LAYOUTS = ("{request} {constraints}", "{request} {constraints}", "{request}\n{constraints}", "{constraints} {request}")
"""How instruction and constraints are put together; the first one counts double."""


class Asked(NamedTuple):
    """What a prompt asks for.

    Attributes:
        request: the instruction.
        constraints: in the order in which the prompt states them.
    """

    request: str
    constraints: tuple[Constraint, ...]


class Verdict(NamedTuple):
    """Whether a response satisfies a constraint of its prompt.

    Attributes:
        kind: of the constraint.
        met: whether the strict check passed.
    """

    kind: str
    met: bool


def sample_constraints(
    rng: Random, request: Request, first: type[Constraint], kinds: Sequence[type[Constraint]], *, count: int
) -> tuple[Constraint, ...]:
    """Compatible constraints of different kinds.

    Args:
        rng: draws kinds and settings.
        request: what they are added to.
        first: kind of the first one.
        kinds: to choose the others from.
        count: number of constraints.
    """
    chosen = [first]
    while len(chosen) < count:
        chosen.append(pick(rng, [kind for kind in kinds if compatible([*chosen, kind])]))
    return tuple(kind.sample(rng, request) for kind in chosen)


def write_prompt(rng: Random, request: Request, constraints: Sequence[Constraint]) -> str:
    """One of many ways to state a request with constraints."""
    stated = " ".join(pick(rng, constraint.describe()) for constraint in constraints)
    return pick(rng, LAYOUTS).format(request=request.text, constraints=stated)


@lru_cache(maxsize=16_384)
def read_prompt(prompt: str) -> Asked:
    """The request and the constraints that a prompt's own text states.

    Args:
        prompt: as ``write_prompt`` makes them.

    Raises:
        ValueError: the text states no constraint in the words of any kind, or nothing but constraints.
    """
    found = [
        (match, kind) for kind in KINDS.values() for pattern in kind.patterns() for match in pattern.finditer(prompt)
    ]
    found.sort(key=lambda pair: pair[0].start())
    if not found:
        raise ValueError(f"not a prompt with constraints: no constraint in the words of the task in {prompt[:120]!r}")
    edges = [0, *(edge for match, _ in found for edge in match.span()), len(prompt)]
    rest = " ".join(prompt[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    request = re.sub(r"\s+", " ", rest).strip()
    if not request:
        raise ValueError(f"not a prompt with constraints: no request besides them in {prompt[:120]!r}")
    return Asked(request, tuple(kind.read(match) for match, kind in found))


def verdicts(prompt: str, response: str) -> tuple[Verdict, ...]:
    """Whether a response satisfies each constraint that the prompt states.

    Args:
        prompt: see ``read_prompt``.
        response: any text; an empty one satisfies nothing.

    Raises:
        ValueError: the prompt states no constraint.
    """
    return tuple(Verdict(of.kind, of.check(response)) for of in read_prompt(prompt).constraints)
