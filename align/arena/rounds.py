"""Rounds of an arena: a prompt, two models in random order, two responses that grow, a vote."""

import random
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from align.arena.table import win_rates
from align.arena.votes import Choice, Identity, Side, Vote, VoteFiles
from align.generation.reply import ChatModel, Reply
from align.generation.sampling import response_seed
from align.tokenizer.prompts import Prompt, as_messages, as_text, with_system

LONGEST_PROMPT = 100_000
"""Characters of a prompt"""
_OPEN = 8
"""Rounds that may wait for their vote; the oldest is dropped for a new one"""


class ArenaModel(NamedTuple):
    """A model that takes part.

    Attributes:
        model: what responds.
        weights: its ``weights_fingerprint``.
    """

    model: ChatModel
    weights: str

    @property
    def identity(self) -> Identity:
        """Its name and weights."""
        return Identity(self.model.name, self.weights)


@dataclass(frozen=True)
class Round:
    """Two responses without their vote."""

    number: int
    messages: Sequence[dict[str, Any]]
    """The prompt"""
    models: tuple[ArenaModel, ArenaModel]
    """Left and right"""
    replies: tuple[Reply, Reply]
    """Left and right"""

    def progress(self) -> dict[str, Any]:
        """What the page may know: both texts so far, how each ended, and whether both are over.

        The texts grow at the pace of the slower model, so that speed does not tell who is who.
        """
        reasons = [reply.reason for reply in self.replies]  # before the texts, which may still grow
        texts = [reply.text for reply in self.replies]
        if over := None not in reasons:
            ended = dict(zip(("left", "right"), reasons, strict=True))
        else:
            ended = {}
            shown = min(len(text) for text, reason in zip(texts, reasons, strict=True) if reason is None)
            texts = [text[:shown] for text in texts]
        return {"left": texts[0], "right": texts[1], "over": over, "ended": ended}

    def cancel(self) -> None:
        """End both responses after the tokens that are being sampled."""
        for reply in self.replies:
            reply.cancel()


class Refused(ValueError):
    """What the page asked for is not possible; the message is for its user and names no model."""


class Arena:
    """Models, prompts, the rounds that wait for a vote, and the votes."""

    def __init__(
        self,
        models: Sequence[ArenaModel],
        files: VoteFiles,
        *,
        seed: int,
        prompts: Sequence[Prompt] = (),
        system: str | None = None,
    ) -> None:
        """Continue after the last round of the files.

        Args:
            models: at least two, with different names.
            files: the votes.
            seed: with the number of a round it determines the pair of models, their order and the responses' seeds.
            prompts: suggested in turn, and again from the first after the last.
            system: system message of prompts that have none.

        Raises:
            ValueError: there are fewer than two models, or a prompt does not end with the user's message.
        """
        if len(models) < 2:
            raise ValueError(f"an arena takes at least two models, found {len(models)}")
        for number, prompt in enumerate(prompts, 1):
            if (role := as_messages(prompt)[-1]["role"]) != "user":
                raise ValueError(f"prompt {number} ends with a message from {role!r}; it must be the user's")
        self.models, self.files = models, files
        self._seed, self._prompts, self._system = seed, prompts, system
        self._next = max((vote.round for vote in files.votes), default=-1) + 1
        self._rounds: dict[str, Round] = {}

    def suggestion(self) -> dict[str, Any]:
        """The prompt that is suggested for the next round.

        Returns:
            dict: ``index`` (None: there are none), ``text``, the messages ``earlier`` than it, and those before a
            prompt of the user's ``own``.
        """
        index = self._next % len(self._prompts) if self._prompts else None
        prompt = "" if index is None else self._prompts[index]
        return {"index": index, "earlier": self._earlier(index), "text": as_text(prompt), "own": self._earlier(None)}

    def start(self, text: str, suggestion: int | None) -> str:
        """Start a round.

        Args:
            text: the user's message.
            suggestion: index of a suggested prompt whose earlier messages precede it; None: none do.

        Returns:
            str: a name for the round that tells nothing about it.

        Raises:
            Refused: the prompt is blank or too long for one of the models, cannot be encoded, or there is no such
                suggestion.
        """
        # 1. Check the prompt, for every model: otherwise whether it fits would depend on the pair.
        if not text.strip():
            raise Refused("the prompt is empty: write something")
        if len(text) > LONGEST_PROMPT:
            raise Refused(f"the prompt has {len(text)} characters, at most {LONGEST_PROMPT} are taken: shorten it")
        if suggestion is not None and not 0 <= suggestion < len(self._prompts):
            raise Refused(f"there is no suggestion {suggestion}: reload the page")
        messages = [*self._earlier(suggestion), {"role": "user", "content": text}]
        try:
            ids = {each.identity: each.model.encode(messages) for each in self.models}
            for each in self.models:
                each.model.require_room(ids[each.identity])
        except ValueError as error:
            raise Refused(f"{error}: change the prompt") from None
        # 2. Draw two models in random order.
        number, self._next = self._next, self._next + 1
        left, right = draw(len(self.models), seed=self._seed, number=number)
        # 3. Start their responses. A response's seed depends on its model, not on the order.
        models = self.models[left], self.models[right]
        replies = [
            each.model.respond(ids[each.identity], seed=response_seed(self._seed, number, index))
            for each, index in zip(models, (left, right), strict=True)
        ]
        name = secrets.token_urlsafe(12)
        self._rounds[name] = Round(number, messages, models, (replies[0], replies[1]))
        return name

    def round(self, name: str) -> Round:
        """A round that waits for its vote.

        Raises:
            Refused: it has its vote, was dropped, or never was.
        """
        if name not in self._rounds:
            raise Refused("this round has its vote already, or was dropped: send a new prompt")
        return self._rounds[name]

    def drop(self, name: str) -> Round:
        """Forget a round; the caller ends its responses.

        Raises:
            Refused: as for ``round``.
        """
        self.round(name)
        return self._rounds.pop(name)

    def crowded(self) -> list[Round]:
        """Forget the oldest rounds where too many wait for their vote; the caller ends their responses."""
        return [self.drop(name) for name in list(self._rounds)[:-_OPEN]]

    def vote(self, name: str, choice: Choice) -> Vote:
        """Write a round's vote to the files, and forget the round.

        Raises:
            Refused: as for ``round``, or a response is still being sampled or has failed.
            OSError: the vote could not be written; the round still waits for it.
        """
        voted = self.round(name)
        reasons = {reply.reason for reply in voted.replies}
        if None in reasons:
            raise Refused("a response is still being sampled: vote when both are complete")
        if not reasons <= {"stop", "length"}:
            raise Refused("a response failed, so there is nothing to vote on: send a new prompt")
        left, right = (
            Side(
                model=each.model.name,
                weights=each.weights,
                response=reply.text,
                finished=reply.reason == "stop",
                sampling=asdict(reply.sampling),
                seed=reply.seed,
            )
            for each, reply in zip(voted.models, voted.replies, strict=True)
        )
        time = datetime.now(UTC).isoformat(timespec="seconds")
        vote = Vote(time, voted.number, self._seed, voted.messages, left, right, choice)
        self.files.add(vote)
        del self._rounds[name]
        return vote

    def table(self) -> dict[str, Any]:
        """A row for each pair of models, and how many votes of the files are on other models or weights."""
        identities = [each.identity for each in self.models]
        rows = list(win_rates(identities, self.files.votes))
        return {"pairs": rows, "elsewhere": len(self.files.votes) - sum(row["votes"] for row in rows)}

    def close(self) -> None:
        """End all responses."""
        while self._rounds:
            self._rounds.popitem()[1].cancel()

    def _earlier(self, suggestion: int | None) -> list[dict[str, Any]]:
        """The messages before the user's."""
        messages = [] if suggestion is None else [*as_messages(self._prompts[suggestion])][:-1]
        return with_system(messages, self._system)


def draw(count: int, *, seed: int, number: int) -> tuple[int, int]:
    """The models of a round, left and right; every pair in either order is equally likely.

    Args:
        count: number of models.
        seed: of the arena.
        number: of the round.

    Returns:
        tuple: two different indices.
    """
    left, right = random.Random(response_seed(seed, number)).sample(range(count), 2)
    return left, right
