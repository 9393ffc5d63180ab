"""Output on the terminal: sentences and tables."""

from rich.console import Console
from rich.table import Table

WIDTH = 100  # columns of a table where there is no terminal

_NUMBERS = {
    *("photos", "top-1", "top-5", "probability", "same first label", "furthest probability"),
    *("models", "crops", "cost", "top-1\nerror", "top-5\nerror"),
    *("replicas", "busy", "p50 ms", "p99 ms", "refused"),
}


def terminal(*, stderr: bool = False) -> Console:
    """Return a console for standard output or error, wide enough for a table without a terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def table(title: str, *headings: str) -> Table:
    """Create a table whose columns of numbers are aligned to the right."""
    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    return table


def say(sentence: str, *, stderr: bool = False) -> None:
    """Print a sentence without markup."""
    terminal(stderr=stderr).print(
        sentence, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
