"""The terminal: where sentences and tables go, and how wide they are."""

from rich.console import Console
from rich.table import Table

WIDTH = 100  # columns of a table that no terminal shows

_NUMBERS = {
    *("photos", "top-1", "top-5", "probability", "same first label", "furthest probability"),
    *("models", "crops", "cost", "top-1\nerror", "top-5\nerror"),
    *("replicas", "busy", "p50 ms", "p99 ms", "refused"),
}


def terminal(*, stderr: bool = False) -> Console:
    """Give standard output or error, wide enough for a table where it is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def table(title: str, *headings: str) -> Table:
    """Begin a table; numbers are aligned at the right."""
    begun = Table(title=title or None)
    for heading in headings:
        begun.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    return begun


def say(sentence: str, *, stderr: bool = False) -> None:
    """Print a sentence as it is."""
    terminal(stderr=stderr).print(
        sentence, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
