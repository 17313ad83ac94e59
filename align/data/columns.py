"""Columns of a record that rewards and judges read beside its prompt."""

import json
from collections.abc import Sequence

from align.data.formats.fields import Fields, required
from align.tokenizer.prompts import Columns


def columns_of(record: Fields, names: Sequence[str]) -> Columns:
    """Columns of a record.

    Args:
        record: the record.
        names: of the columns.

    Raises:
        ValueError: a column is missing or null, or has a value that JSON does not know, such as a date or bytes.
    """
    found = {}
    for name in names:
        try:
            value = required(record, name)
        except ValueError as error:
            raise ValueError(f"{error}; a reward or judge reads it") from None
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"field {name!r}, which a reward or judge reads, can't be stored as JSON: {error}; write it as text or "
                "numbers"
            ) from None
        found[name] = value
    return found
