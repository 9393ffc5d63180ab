"""Progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show one bar that counts items; gives what takes the number of those newly done."""
    with counting() as bar:
        yield partial(bar.advance, bar.add_task(title, total=total))


def downloading() -> Progress:
    """Create bars that count bytes."""
    return _bars(DownloadColumn())


def _bars(amount: MofNCompleteColumn | DownloadColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    return Progress(*columns, console=console.terminal(stderr=True))
