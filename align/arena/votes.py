"""Votes between two blind responses, and the files that they become.

``votes.jsonl`` has everything. ``preferences.jsonl`` and ``feedback.jsonl`` follow from it, in the formats
that ``PreferenceData`` and ``FeedbackData`` detect; they are rewritten where a kill has left them behind.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from align.io.atomic import replacing_file

Choice = Literal["left", "right", "tie", "both_bad"]
CHOICES: tuple[str, ...] = get_args(Choice)
VOTES, PREFERENCES, FEEDBACK = "votes.jsonl", "preferences.jsonl", "feedback.jsonl"


class Identity(NamedTuple):
    """A model whose votes belong together.

    Attributes:
        name: in the command line.
        weights: its ``weights_fingerprint``.
    """

    name: str
    weights: str


@dataclass(frozen=True)
class Side:
    """One of the two responses of a round."""

    model: str
    """Its name in the command line"""
    weights: str
    """The model's ``weights_fingerprint``"""
    response: str
    finished: bool
    """Whether the model ended it; False: it reached ``max_new_tokens``"""
    sampling: Mapping[str, Any]
    """The fields of its ``SamplingConfig``"""
    seed: int
    """Of the response"""

    @property
    def identity(self) -> Identity:
        """The model."""
        return Identity(self.model, self.weights)


@dataclass(frozen=True)
class Vote:
    """A round with its vote, as a line of votes.jsonl has it."""

    time: str
    """When it was cast: ISO 8601, UTC"""
    round: int
    """Its number, from 0"""
    seed: int
    """Of the arena"""
    prompt: Sequence[Mapping[str, Any]]
    """Messages; the last one is the user's"""
    left: Side
    """Response A"""
    right: Side
    """Response B"""
    vote: Choice

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right."""
        return self.left, self.right


def preferences_of(vote: Vote) -> list[dict[str, Any]]:
    """The preference pair of a vote: none for a tie or two bad responses, nor where one is blank or both are equal."""
    if vote.vote not in ("left", "right") or len(_usable(vote)) < 2:
        return []
    chosen, rejected = vote.sides if vote.vote == "left" else vote.sides[::-1]
    return [
        {
            "prompt": vote.prompt,
            "chosen": [_turn(chosen)],
            "rejected": [_turn(rejected)],
            "model_chosen": chosen.model,
            "model_rejected": rejected.model,
            "round": vote.round,
        }
    ]


def feedback_of(vote: Vote) -> list[dict[str, Any]]:
    """The labelled responses of a vote: none for a tie.

    The preferred response is desirable and the other one is not; of two bad ones neither is. Blank responses are left
    out, equal ones are one response, and a preference between equal ones is none.
    """
    usable = _usable(vote)
    equal = vote.left.response == vote.right.response
    if vote.vote == "tie" or (equal and vote.vote != "both_bad"):
        return []
    preferred = {"left": vote.left, "right": vote.right}.get(vote.vote)
    return [
        {
            "prompt": vote.prompt,
            "completion": [_turn(side)],
            "label": side is preferred,
            "model": side.model,
            "round": vote.round,
        }
        for side in usable
    ]


_DERIVED: dict[str, Callable[[Vote], list[dict[str, Any]]]] = {PREFERENCES: preferences_of, FEEDBACK: feedback_of}


class VoteFiles:
    """The files of an arena, which a restart continues.

    Attributes:
        votes: all of them, in order.
        repaired: what opening the files repaired, one line each.
    """

    def __init__(self, folder: Path) -> None:
        """Read the votes of earlier sessions, and repair what a kill left half-written.

        Args:
            folder: created if it is missing; no other process may write there.

        Raises:
            ValueError: a line of votes.jsonl is damaged, other than by a kill; the message names file and line.
        """
        self.folder = folder
        self.repaired: list[str] = []
        self._behind: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.votes = list(self._recover())
        for name in _DERIVED:
            if self._derive(name):
                self.repaired.append(f"{folder / name}: differed from {VOTES}, rewritten")

    def add(self, vote: Vote) -> None:
        """Write a vote to the files; it is on disk when this returns.

        A file of training data that could not be written is rewritten with the next vote or the next start.

        Raises:
            OSError: it could not be written, and none of it is in votes.jsonl.
        """
        _append(self.folder / VOTES, [_line(asdict(vote))])
        self.votes.append(vote)
        for name, records_of in _DERIVED.items():
            try:
                if name in self._behind:
                    self._derive(name)
                else:
                    _append(self.folder / name, [_line(record) for record in records_of(vote)])
                self._behind.discard(name)
            except OSError:  # the vote itself is kept
                self._behind.add(name)

    def _recover(self) -> Iterator[Vote]:
        path = self.folder / VOTES
        if not path.is_file():
            return
        *lines, rest = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            yield _read(line, f"{path}:{number}")
        if not rest:
            return
        whole = b"".join(line + b"\n" for line in lines)
        try:
            last = _read(rest, str(path))
        except ValueError:
            self.repaired.append(f"{path}: dropped a half-written vote at the end ({len(rest)} bytes)")
        else:
            whole += rest + b"\n"
            yield last
        with replacing_file(path, binary=True) as file:
            file.write(whole)

    def _derive(self, name: str) -> bool:
        """Write a file that follows from the votes; whether one that differed has been replaced."""
        path, records_of = self.folder / name, _DERIVED[name]
        expected = b"".join(_line(record) for vote in self.votes for record in records_of(vote))
        found = path.read_bytes() if path.is_file() else None
        if found != expected:
            with replacing_file(path, binary=True) as file:
                file.write(expected)
        return found not in (None, expected)


def _usable(vote: Vote) -> list[Side]:
    """The sides whose response is not blank, without repetition."""
    return list({side.response: side for side in reversed(vote.sides) if side.response.strip()}.values())[::-1]


def _turn(side: Side) -> dict[str, str]:
    return {"role": "assistant", "content": side.response}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _append(path: Path, lines: Sequence[bytes]) -> None:
    """Append lines and wait until they are on disk; after an error the file is as before."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            content = memoryview(b"".join(lines))
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _read(line: bytes, where: str) -> Vote:
    """The vote of a line.

    Raises:
        ValueError: it has another form; names ``where`` and the field.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); correct or remove the line") from None
    values = _values(Vote, record, where)
    if values["vote"] not in CHOICES:
        raise ValueError(f"{where}: vote is {values['vote']!r}; it must be {', '.join(CHOICES)}")
    sides = {name: Side(**_values(Side, values[name], f"{where}: {name}")) for name in ("left", "right")}
    return Vote(**values | sides)


_JSON_TYPES: dict[str, type] = {
    "time": str, "round": int, "seed": int, "prompt": list, "vote": str,
    "model": str, "weights": str, "response": str, "finished": bool, "sampling": dict,
}  # fmt: skip


def _values(kind: type, record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON {type(record).__name__}; it must be an object; correct or remove the line")
    values = {}
    for field in fields(kind):
        value, expected = record.get(field.name), _JSON_TYPES.get(field.name, dict)
        if not isinstance(value, expected):
            raise ValueError(
                f"{where}: {field.name} is {value!r}; it must be a {expected.__name__}; correct or remove the line"
            )
        values[field.name] = value
    return values
