"""One line for a user's mistake: what failed, the value, and what to do."""

import argparse


class UsageError(ValueError):
    """The command line is wrong, or the recipe it names; the command exits with code 2."""


class OutOfMemory(RuntimeError):
    """A device is out of memory; the message has a line for each setting that helps."""


def one_line(error: BaseException) -> str | None:
    """The message of an expected error, on one line.

    Args:
        error: raised by a verb.

    Returns:
        str: the message, on several lines only if it is a list; None for an unexpected error (a bug), which needs its
        traceback.
    """
    if isinstance(error, OutOfMemory):
        return str(error)
    words = str(error)
    if isinstance(error, MemoryError) or "out of memory" in words.lower() or "can't allocate memory" in words:
        first = words.split(". ")[0].strip().rstrip(".") or "this machine's"
        return f"out of memory ({first}): use smaller batches or shorter texts"
    if isinstance(error, argparse.ArgumentError):
        return " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: no such file or directory"
    if isinstance(error, ValueError | OSError | FloatingPointError | ModuleNotFoundError):
        return " ".join(str(error).split())
    return None
