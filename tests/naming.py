"""What tests ask of a message: that one line of it names settings, values, files and lines, in any words and order."""

import re

import pytest


def naming(*tokens: object) -> str:
    """Pattern, for ``match=`` too, of a line that holds every token, as a whole word or number where it is one.

    ``naming("width", 3)`` finds ``gpt.width is 3.`` and neither ``width is 33`` nor ``width is 3.5``.
    """
    return "(?m)^" + "".join(f"(?=.*{_whole(str(token))})" for token in tokens)


def names(text: str, *tokens: object) -> bool:
    """Whether one line of a text holds every token."""
    return re.search(naming(*tokens), text) is not None


def error_line(capsys: pytest.CaptureFixture[str], *tokens: object, alone: bool = False) -> str:
    """The last line on stderr, which is a verb's error and holds every token.

    Args:
        capsys: what was printed since it was last read.
        tokens: such as a setting's name and value, a file's name, or FILE:LINE.
        alone: nothing but this line stands on stderr.

    Returns:
        str: the line.
    """
    error = capsys.readouterr().err
    assert "Traceback" not in error, error
    *before, line = error.strip().splitlines()
    assert re.match(r"align \w+: error: ", line), line
    assert not (alone and before), error
    missing = [token for token in tokens if not names(line, token)]
    assert not missing, f"{missing} not in {line!r}"
    return line


def _whole(token: str) -> str:
    before = r"(?<!\w)" if re.match(r"[-\w]", token) else ""
    before += r"(?<!\d\.)" if re.match(r"\d", token) else ""
    after = r"(?!\w)" if re.search(r"\w$", token) else ""
    after += r"(?!\.\d)" if re.search(r"\d$", token) else ""
    return before + re.escape(token) + after
