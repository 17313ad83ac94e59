"""Fenced blocks of Markdown in responses."""

import re

_FENCE = re.compile(r"```([\w+-]*)[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def fenced(response: str, *languages: str) -> str | None:
    """The last fenced block of a response that names one of the languages, or none.

    Args:
        response: any text; a block without an end reaches to its own.
        *languages: in lower case.

    Returns:
        str: the block without its fence; None if there is no such block.
    """
    blocks = [text for language, text in _FENCE.findall(response) if language.lower() in ("", *languages)]
    return str(blocks[-1]) if blocks else None
