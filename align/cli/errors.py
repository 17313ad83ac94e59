"""One line for a user's mistake: what, where, and what would be right."""

import argparse


class UsageError(ValueError):
    """The command line is wrong, or the recipe it names; the command exits with code 2."""


class OutOfMemory(RuntimeError):
    """A device's memory is full; the message has a line for each thing to change."""


def one_line(error: BaseException) -> str | None:
    """The message of a foreseen mistake, on one line.

    Args:
        error: what a verb raised.

    Returns:
        str: the message, of several lines only where it is a list; None for an error nobody foresaw (a bug), which
        deserves its traceback.
    """
    if isinstance(error, OutOfMemory):
        return str(error)
    words = str(error)
    if isinstance(error, MemoryError) or "out of memory" in words.lower() or "can't allocate memory" in words:
        first = words.split(". ")[0].strip().rstrip(".") or "this machine's"
        return f"out of memory ({first}): smaller batches or shorter texts take less of it"
    if isinstance(error, argparse.ArgumentError):
        return " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: no such file or directory"
    if isinstance(error, ValueError | OSError | FloatingPointError | ModuleNotFoundError):
        return " ".join(str(error).split())
    return None
