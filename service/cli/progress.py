"""Progress bars."""

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from service.cli import console


def counting() -> Progress:
    """Create bars that count items."""
    return _bars(MofNCompleteColumn())


def downloading() -> Progress:
    """Create bars that count bytes."""
    return _bars(DownloadColumn())


def _bars(amount: MofNCompleteColumn | DownloadColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    return Progress(*columns, console=console.terminal(stderr=True))
