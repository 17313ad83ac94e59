"""Demonstrations: drafts of a model, edited so that they satisfy the constraints of their prompts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import permutations
from random import Random
from typing import NamedTuple

from align.sandbox.constraints.constraint import Constraint
from align.sandbox.constraints.editing import tidied
from align.sandbox.constraints.prompts import read_prompt

_ATTEMPTS = 8
"""Choices of an edit may suit the other constraint or not."""


class Draft(NamedTuple):
    """A response to edit.

    Attributes:
        prompt: with constraints in words.
        text: the response.
    """

    prompt: str
    text: str


def edited(prompt: str, draft: str, rng: Random) -> str | None:
    """A draft as a person would edit it to satisfy the prompt; pure, and deterministic in ``rng``.

    1. Drop an unfinished last sentence, sentences about the task, and repeated sentences.
    2. Apply the edits of the constraints that it does not satisfy, one after the other.
    3. Check every constraint; if one is not satisfied, try again with another order and other choices.

    Args:
        prompt: see ``read_prompt``.
        draft: any text.
        rng: chooses among several edits.

    Returns:
        A text that satisfies every constraint, or None if the edits don't lead to one.

    Raises:
        ValueError: the prompt states no constraint.
    """
    request, constraints = read_prompt(prompt)
    tidy = tidied(draft, request)
    if not tidy:
        return None
    for _ in range(_ATTEMPTS):
        for order in permutations(constraints):
            text = _in_order(tidy, request, order, rng)
            if all(constraint.check(text) for constraint in constraints):
                return text
    return None


def _in_order(text: str, request: str, constraints: Iterable[Constraint], rng: Random) -> str:
    for constraint in constraints:
        if not constraint.check(text):
            text = constraint.edit(text, request, rng)
    return text


class Tally:
    """What became of the drafts.

    Attributes:
        drafts: read.
        already_right: satisfied every constraint before.
        edited: satisfy them after an edit.
        left: were only tidied, whether right or not.
        dropped: have no demonstration.
        dropped_by_kind: of these, by a kind that their prompt asks for; a draft with two constraints counts twice.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.drafts = self.already_right = self.edited = self.left = self.dropped = 0
        self.dropped_by_kind: Counter[str] = Counter()

    @property
    def records(self) -> int:
        """Demonstrations."""
        return self.already_right + self.edited + self.left

    def counts(self) -> dict[str, int | dict[str, int]]:
        """Ready for JSON."""
        return vars(self) | {"dropped_by_kind": dict(sorted(self.dropped_by_kind.items()))}


def demonstrations(drafts: Iterable[Draft], tally: Tally, *, rate: float = 1.0, seed: int = 0) -> Iterator[Draft]:
    """Drafts as demonstrations: ``rate`` of them are edited where they are wrong, the rest is only tidied.

    Demonstration i depends on the seed, i and draft i alone.

    Args:
        drafts: one per prompt.
        tally: counts them.
        rate: probability that a draft is edited, in [0, 1].
        seed: of everything random.
    """
    for number, draft in enumerate(drafts):
        tally.drafts += 1
        rng = Random(f"{seed}/demonstrations/{number}")
        use = rng.random() < rate
        request, constraints = read_prompt(draft.prompt)
        text = edited(draft.prompt, draft.text, rng) if use else tidied(draft.text, request) or None
        if text is None:
            tally.dropped += 1
            tally.dropped_by_kind.update(constraint.kind for constraint in constraints)
            continue
        if not use:
            tally.left += 1
        elif all(constraint.check(draft.text) for constraint in constraints):
            tally.already_right += 1
        else:
            tally.edited += 1
        yield Draft(draft.prompt, text)
