"""Formats of documents for pretraining."""

from abc import abstractmethod
from dataclasses import dataclass

from align.data.formats.fields import Fields, text
from align.data.formats.record_format import RecordFormat


class TextFormat(RecordFormat[str]):
    """Turns a record into the text of a document."""

    @abstractmethod
    def text(self, record: Fields) -> str:
        """The text of a record.

        Raises:
            ValueError: names the field and the reason.
        """

    def read(self, record: Fields) -> str:
        """The text of a record.

        Raises:
            ValueError: as ``text`` raises, or the document is empty.
        """
        document = self.text(record)
        if not document:
            raise ValueError(f"the document is empty (field {', '.join(map(repr, self.fields))})")
        return document


@dataclass(frozen=True)
class Text(TextFormat):
    """``{"text": ...}``."""

    field: str = "text"
    """Field of the text"""

    @property
    def fields(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.field,)

    def text(self, record: Fields) -> str:
        """See the base class."""
        return text(record, self.field)
