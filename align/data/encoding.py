"""From files of records to what a corpus holds, one record at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from align.data.readers import Source
from align.data.records import BadRecords

Encoded = TypeVar("Encoded")


def encode_records(
    sources: Sequence[Source],
    bad: BadRecords,
    *,
    format: str,
    detect: Callable[[Mapping[str, Any]], str],
    encode: Callable[[Mapping[str, Any], Any], Encoded],
) -> Iterator[Encoded]:
    """Encode every record that can be used; the others go to ``bad``.

    Args:
        sources: files, in order.
        bad: what becomes of bad records.
        format: of the records; "auto": told from each file's first record.
        detect: fields to the name of a format; ValueError where it can't be told.
        encode: fields and format to what a corpus holds; ValueError with the reason for a bad record.

    Raises:
        ValueError: a file's format can't be told.
    """
    for source in sources:
        name = None if format == "auto" else format
        for record in source.records(bad):
            if name is None:
                try:
                    name = detect(record.fields)
                except ValueError as error:
                    raise ValueError(f"{record.source}: {record.place}: {error}") from None
            try:
                encoded = encode(record.fields, name)
            except ValueError as error:
                bad.add(record.source, record.place, str(error))
                continue
            yield encoded
