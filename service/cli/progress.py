"""Bars that show how far something has come."""

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
    """Make bars that count."""
    return _bars(MofNCompleteColumn())


def downloading() -> Progress:
    """Make bars that measure bytes."""
    return _bars(DownloadColumn())


def _bars(amount: MofNCompleteColumn | DownloadColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    return Progress(*columns, console=console.terminal(stderr=True))
