"""Where a record stands, what is wrong with it, and what happens then."""

from typing import Any, Literal, NamedTuple

OnBadRecord = Literal["stop", "skip"]


class Record(NamedTuple):
    """One record of a source.

    Attributes:
        source: file or Hub id, as given.
        place: "line 3" or "record 3", counted from 1.
        fields: what the record holds.
    """

    source: str
    place: str
    fields: dict[str, Any]


class BadRecordError(ValueError):
    """A record can't be used; the message names source, place, field and reason."""


class BadRecords:
    """Stops at the first bad record, or counts them and remembers the first."""

    def __init__(self, policy: OnBadRecord) -> None:
        """Start counting at zero."""
        self.policy = policy
        self.count = 0
        self.first = ""

    def add(self, source: str, place: str, reason: str) -> None:
        """Take note of a bad record.

        Raises:
            BadRecordError: the policy is "stop".
        """
        message = f"{source}: {place}: {reason}"
        if self.policy == "stop":
            raise BadRecordError(f"{message} (on_bad_record: skip leaves such records out)")
        self.count += 1
        self.first = self.first or message

    def report(self) -> list[str]:
        """One line when records were left out, else none."""
        return [f"left out {self.count} bad record(s); the first: {self.first}"] if self.count else []
