"""What a record format is, and how the format of a file is detected."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from align.data.formats.fields import Chat, Fields
from align.io.code import code_hash
from align.tokenizer.chat_template import text_of

Content = TypeVar("Content", covariant=True)

Format = TypeVar("Format", bound="RecordFormat[Any]")


class RecordFormat(ABC, Generic[Content]):
    """How a record stores its content.

    A format is a frozen dataclass. Its settings are what differs between files of the format, such as field names. A
    recipe selects it by the name of its class (``format: Alpaca``), or by class path if it is yours.
    """

    @property
    @abstractmethod
    def fields(self) -> tuple[str, ...]:
        """Fields that every record of this format has."""

    @abstractmethod
    def read(self, record: Fields) -> Content:
        """The checked content of a record.

        Raises:
            ValueError: the record can't be used; names the field and the reason.
        """

    def __post_init__(self) -> None:
        """Check that the fields have names, no two alike."""
        if not all(self.fields) or len(set(self.fields)) < len(self.fields):
            raise ValueError(f"{type(self).__name__} reads the fields {self.fields}; give each a name of its own")

    def fits(self, record: Fields) -> bool:
        """Whether a record looks like one of this format: by default, whether it has all ``fields``."""
        return all(record.get(field) is not None for field in self.fields)

    @property
    def identity(self) -> dict[str, str]:
        """What decides the content of a record: class, settings, and the code of a class outside align.

        So a cache does not outlive a change of a user's class; of ours, the cache has a version.
        """
        kind = type(self)
        settings = {name: repr(value) for name, value in vars(self).items()}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", **settings, "source": code_hash(kind) or ""}


def detect(record: Fields, formats: Sequence[Format]) -> Format:
    """The only format that a record fits.

    Args:
        record: the first one of a file.
        formats: candidates, with their default settings.

    Raises:
        ValueError: no format fits, or several do.
    """
    fitting = [format for format in formats if format.fits(record)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(map(repr, record)) or "none"
    if fitting:
        names = " or ".join(type(format).__name__ for format in fitting)
        raise ValueError(f"the fields {found} fit several formats; set format to {names}")
    known = "; ".join(f"{type(format).__name__} ({', '.join(format.fields)})" for format in formats)
    raise ValueError(f"the fields {found} fit no format; set format to one of {known}, or to a class of yours")


class FileFormat(Generic[Content]):
    """The format of the records of one file: a given one, or the only one that the first usable record fits."""

    def __init__(self, given: RecordFormat[Content] | None, candidates: Sequence[RecordFormat[Content]]) -> None:
        """Begin before the first record.

        Args:
            given: of all records; None detects it.
            candidates: for detection.
        """
        self._given, self._candidates, self._detected = given, candidates, given

    def of(self, record: Fields) -> RecordFormat[Content]:
        """The format to read a record with.

        Raises:
            ValueError: none was detected yet, and no format fits, or several do; or the record fits another than the
                one that was detected, which would read part of it.
        """
        if self._detected is None:
            self._detected = detect(record, self._candidates)
        elif self._given is None and not self._detected.fits(record):
            for other in self._candidates:
                if other.fits(record):
                    raise ValueError(
                        f"the record fits {type(other).__name__}, but the file is read as "
                        f"{type(self._detected).__name__}, which its first record fits; divide it into files of one "
                        "format, or set format"
                    )
        return self._detected


def check_prompt(prompt: Chat) -> None:
    """Check that a model can respond to a prompt.

    Raises:
        ValueError: it has no messages, or does not end with a message from the user or a tool, or that is blank.
    """
    if not prompt:
        raise ValueError("the prompt has no messages")
    if (role := prompt[-1]["role"]) not in ("user", "tool"):
        raise ValueError(
            f"the prompt ends with a message from the {role}; the last message must be from the user or a tool"
        )
    if not text_of(prompt[-1]["content"]).strip():
        raise ValueError("the last message of the prompt is blank")
