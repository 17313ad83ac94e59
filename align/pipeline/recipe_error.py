"""Mistakes in recipe folders."""

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """A recipe folder, its pipeline.yaml or a variable given for it is wrong; the command exits with code 2."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint that names the valid word most like a wrong one.

    Args:
        word: what was given.
        valid: the words that would be right.

    Returns:
        str: ``; did you mean 'x'?``, or an empty string if no word is similar.
    """
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
