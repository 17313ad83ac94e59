"""The one progress bar: silent where stderr is no terminal, its counts right where it is one."""

import pytest
from rich.console import Console

from align.io.progress import progress_bar


def test_nothing_is_shown_without_a_terminal(capsys):
    with progress_bar("work", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("in_bytes", "shown"), [(False, "30/40"), (True, "30/40 bytes")])
def test_counts(monkeypatch, capsys, in_bytes, shown):
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: True))
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("work", 40, in_bytes=in_bytes) as advance:
        advance(10)
        advance(20)
    error = capsys.readouterr().err
    assert "work" in error
    assert shown in error


def test_only_the_rank_that_shows(monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: True))
    with progress_bar("work", 2, show=False) as advance:
        advance(2)
    assert "work" not in capsys.readouterr().err
