"""Progress bars for long work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Advance = Callable[[int], None]
"""Adds a count of units to what is done."""


@contextmanager
def progress_bar(
    task: str, total: int | None = None, *, in_bytes: bool = False, show: bool = True
) -> Iterator[Advance]:
    """A bar on stderr with the rate and the remaining time, which disappears when the block ends.

    Nothing is shown where stderr is no terminal.

    Args:
        task: what is being done.
        total: units of the whole task; None: unknown.
        in_bytes: the units are bytes.
        show: False on ranks other than the first.

    Yields:
        Advance: to be called with the number of units done since the last call.
    """
    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), _Rate())
    console = Console(stderr=True)
    with Progress(
        "{task.description}",
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    ) as bars:
        bar = bars.add_task(task, total=total)
        yield lambda count: bars.advance(bar, count)


class _Rate(ProgressColumn):
    """Units per second, once there is a rate."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")
