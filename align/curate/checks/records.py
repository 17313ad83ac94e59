"""Checks of records: what is dropped, empty, out of order, or the same again and again."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from align.curate.check import Check, Example, Finding, affected, percent
from align.curate.context import Context, Dropped, Sample, plain

_NUMBERS = re.compile(r"\d+|'[^']*'")
_RESPONSE_FIELDS = ("output", "response", "completion", "chosen", "rejected", "answer", "text")


@dataclass(frozen=True)
class UnreadableFiles(Check):
    """Files that can't be read: missing, empty, binary, or of no known format."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            for reason in split.unreadable:
                yield Finding(f"{split.name}: {reason}", "give a file of a format in docs/data.md", split=split.name)


@dataclass(frozen=True)
class DroppedRecords(Check):
    """Records that training can't use: an error if the data module would stop at the first one."""

    severity = "warning"

    def find(self, context: Context) -> Iterable[Finding]:
        """One finding for each reason, numbers and names in it aside."""
        stops = context.run.on_bad_record == "stop"
        fix = "correct the records, or set data.init_args.on_bad_record to skip" if stops else "correct the records"
        for split in context.splits.values():
            reasons: dict[str, list[Dropped]] = {}
            for record in split.dropped:
                reasons.setdefault(_NUMBERS.sub("_", record.reason), []).append(record)
            total = len(split.samples) + len(split.dropped)
            for records in sorted(reasons.values(), key=len, reverse=True):
                what = f"records can't be used: {records[0].reason}"
                yield from affected(split, records, what, fix, total=total, severity="error" if stops else None)


@dataclass(frozen=True)
class NoRecords(Check):
    """A split without a usable record."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            if not split.samples and not split.unreadable:
                yield Finding("no record can be used", "see the dropped records", count=0, split=split.name)


@dataclass(frozen=True)
class EmptyResponses(Check):
    """Responses that say nothing: blank, or a few characters of punctuation."""

    def find(self, context: Context) -> Iterable[Finding]:
        """Also those that the record format refuses."""
        for split in context.splits.values():
            if context.kind == "prompts":
                continue
            kept = [sample for sample in split.samples if any(map(_wordless, sample.responses))]
            blank = [record for record in split.dropped if _has_blank_response(record.fields)]
            yield from affected(
                split,
                [*blank, *kept],
                "records have an empty response",
                "remove them: they teach the model to say nothing",
                total=len(split.samples) + len(split.dropped),
            )


def _wordless(text: str) -> bool:
    return len(text) < 40 and not any(character.isalnum() or ord(character) > 0x2000 for character in text)


def _has_blank_response(record: Mapping[str, Any]) -> bool:
    if any(isinstance(record.get(field), str) and not record[field].strip() for field in _RESPONSE_FIELDS):
        return True
    for value in record.values():
        for message in value if isinstance(value, list) else ():
            if not isinstance(message, Mapping):
                continue
            role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
            if role in ("assistant", "gpt") and isinstance(content, str) and not content.strip():
                return not message.get("tool_calls")
    return False


@dataclass(frozen=True)
class RoleOrder(Check):
    """Chats that begin with the assistant, or in which one side speaks twice in a row."""

    share: float = 0.0
    """Share of chats that may"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            odd = [sample for sample in split.samples if _out_of_order(sample.roles)]
            yield from affected(
                split,
                odd,
                "chats have an unusual order of roles",
                "check how turns were split or merged",
                example=lambda sample: Example.of(sample, ", ".join(sample.roles)),
                silent=self.share,
            )


def _out_of_order(roles: tuple[str, ...]) -> bool:
    turns = [role for role in roles if role not in ("system", "developer")]
    if turns[:1] == ["assistant"] or any(role in ("system", "developer") for role in roles[1:]):
        return True
    return any(left == right and left != "tool" for left, right in zip(turns, turns[1:], strict=False))


@dataclass(frozen=True)
class RepeatedResponses(Check):
    """One response to many different prompts, such as a refusal."""

    share: float = 0.02
    """Share of records that may have the same response"""
    least: int = 3
    """Fewest records that count"""

    def find(self, context: Context) -> Iterable[Finding]:
        """The most frequent response of each split."""
        if context.kind not in ("chats", "pairs"):
            return
        for split in context.splits.values():
            prompts: dict[str, set[str]] = {}
            for sample in split.samples:
                for response in sample.responses[:1]:
                    prompts.setdefault(plain(response), set()).add(sample.prompt)
            response = max(prompts, key=lambda one: len(prompts[one]), default="")
            count = len(prompts.get(response, ()))
            # A short label (yes, no, a class) is meant to recur.
            if count >= self.least and count > self.share * len(split.samples) and len(response.split()) > 3:
                yield Finding(
                    f"{percent(count, len(split.samples))} records have the same response to different prompts",
                    "remove most of them: the model will give it to any prompt",
                    count=count,
                    total=len(split.samples),
                    split=split.name,
                    examples=[
                        Example.of(one, one.responses[0])
                        for one in split.samples
                        if plain(one.responses[0]) == response
                    ][:3],
                )


_ASSISTANT = re.compile(
    r"\bas an? (?:AI|artificial intelligence)(?: language)?(?: model| assistant)?\b"
    r"|\bI(?: am|'m) (?:an AI|a language model|ChatGPT|Claude)\b|\b(?:developed|created|trained) by OpenAI\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OtherModels(Check):
    """Responses in which another assistant speaks of itself."""

    share: float = 0.005
    """Share of records that may have one"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            found = [sample for sample in split.samples if any(map(_ASSISTANT.search, _learnt(sample, context)))]
            yield from affected(
                split,
                found,
                "records have a response in which a model speaks of itself",
                "remove them, unless this model is to introduce itself so",
                example=lambda sample: Example.of(sample, _around(_ASSISTANT, "\n".join(sample.responses))),
                silent=self.share,
            )


def _learnt(sample: Sample, context: Context) -> tuple[str, ...]:
    return sample.responses[:1] if context.kind == "pairs" else sample.responses


def _around(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return text[max(0, found.start() - 60) : found.end() + 60] if found else text


@dataclass(frozen=True)
class UnreadColumns(Check):
    """Fields of the records that neither the record format nor a reward reads."""

    severity = "note"

    def find(self, context: Context) -> Iterable[Finding]:
        """Those of the training split."""
        split = context.train
        unread = Counter(field for sample in split.samples for field in sample.unread)
        if unread:
            yield Finding(
                f"fields that nothing reads: {', '.join(sorted(unread))}",
                count=max(unread.values()),
                total=len(split.samples),
                split=split.name,
            )


@dataclass(frozen=True)
class SmallValidation(Check):
    """Too few held-out records to tell an improvement from chance."""

    least: int = 30
    """Fewest records"""

    severity = "note"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if not context.run.has_validation:
            yield Finding(
                "there is no validation data, so overfitting goes unnoticed",
                "set data.init_args.validation or val_fraction",
            )
        for split in context.held_out:
            if context.kind != "texts" and 0 < len(split.samples) < self.least:
                yield Finding(
                    f"{len(split.samples)} records are too few to tell models apart",
                    f"hold out at least {self.least}, better hundreds",
                    count=len(split.samples),
                    total=len(split.samples),
                    split=split.name,
                )
