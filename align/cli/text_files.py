"""The documents of files that a command line names."""

from collections.abc import Sequence


def read_texts(files: Sequence[str]) -> list[str]:
    """Documents, in order.

    Args:
        files: JSONL of ``{"text": ...}``, or .txt; what ``data.init_args.train`` takes.

    Raises:
        ValueError: a record has no text; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    from align.data.formats.texts import Text
    from align.data.readers import BadRecords, find_sources
    from align.data.tokenize import encode_records

    sources, bad = find_sources([*files]), BadRecords("stop", hint="")
    return list(encode_records(sources, bad, format=Text(), formats=(), encode=str))
