"""The report of a benchmark as tables for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.bench.figures import Closed, Latency, Level, Report, Spread

_MEBIBYTE = 1024 * 1024


_LATENCY = ["p50", "p90", "p99"]


def tables(report: Report) -> Group:
    """Format a report."""
    return Group(*_engine(report), *_closed_loop(report), *_open_loop(report), *_memory(report))


def _engine(report: Report) -> Iterator[RenderableType]:
    yield Text("\n".join(f"{name:10} {value}" for name, value in report.subject.items()))
    if report.start:
        yield Text(f"ready in {report.start.first:.1f} s, again {report.start.again:.1f} s")
    if report.forwards:
        yield _table("Network alone", ["batch", "views/s"], _rates(report.forwards))
    if report.limit:
        yield Text(f"Limit, decode and network without a server: {_spread(report.limit)} images/s")


def _closed_loop(report: Report) -> Iterator[RenderableType]:
    yield _table(
        "Closed loop",
        ["body", "connections", "images/s", "of the limit", *_LATENCY, "failed"],
        [_closed(closed) for closed in report.closed],
    )
    if report.closed[0].usage:
        processes = " / ".join(report.closed[0].usage)
        yield _table(
            f"What an image takes of the processes {processes}",
            ["body", "connections", "CPU ms", "more than the limit", "switches", "memory MiB"],
            [_usage(closed) for closed in report.closed],
        )
    if report.lone:
        yield Text(
            f"A lone request: {1e3 * report.lone.latency.median:.1f} ms, without a server "
            f"{1e3 * report.lone.alone.median:.1f} ms, ratio {_spread(report.lone.ratio, 2)}"
        )
    names = list(next(iter(report.stages.values())))
    yield _table(
        "Where a request's time goes, mean ms",
        ["connections", *names, "sum"],
        [
            [str(number), *(_ms(stages[name]) for name in names), _ms(sum(stages.values()))]
            for number, stages in report.stages.items()
        ],
    )
    if report.views:
        costs = [[plan, f"{cost:.1f}"] for plan, cost in report.views.items()]
        yield _table("Cost of an image", ["views", "x single"], costs)


def _open_loop(report: Report) -> Iterator[RenderableType]:
    slo = report.sustained
    kept = f"up to {slo.rate:.0f} a second" if slo.rate else "at none of the rates tried"
    yield Text(f"Random arrivals: 99th percentile within {_ms(slo.objective)} ms {kept}")
    yield _table(
        "Random arrivals a second, with a deadline; latency in ms from when they were due",
        [
            *("x max", "offered", "in time", "of max", *_LATENCY),
            *("late", "refused", "in p50", "in p99"),
        ],
        [_level(level) for level in report.levels],
    )


def _memory(report: Report) -> Iterator[RenderableType]:
    if report.memory:
        before, after = report.memory.nbytes
        few, many = report.memory.requests
        yield Text(
            f"Memory: {before / _MEBIBYTE:.0f} MiB after {few} requests, "
            f"{after / _MEBIBYTE:.0f} MiB after {many} ({100 * report.memory.growth:+.1f} %)"
        )


def _rates(forwards: dict[int, float]) -> list[list[str]]:
    return [[str(size), f"{rate:.0f}"] for size, rate in forwards.items()]


def _closed(row: Closed) -> list[str]:
    ratio = _spread(row.ratio, 2) if row.ratio else ""
    latency = _latency(row.latency)
    return [row.body, str(row.connections), _spread(row.rate), ratio, *latency, str(row.failed)]


def _usage(row: Closed) -> list[str]:
    processes = row.usage.values()
    return [
        *(row.body, str(row.connections)),
        " / ".join(f"{1e3 * used.cpu_seconds:.2f}" for used in processes),
        _spread(row.tax, 2, 1e3) if row.tax else "",
        " / ".join(f"{used.switches:.1f}" for used in processes),
        " / ".join(f"{used.nbytes / _MEBIBYTE:.0f}" for used in processes),
    ]


def _level(row: Level) -> list[str]:
    rates = [f"{row.load:g}", f"{row.offered:.0f}", f"{row.goodput:.0f}", f"{row.ratio:.2f}"]
    refused = [f"{100 * row.refused_share:.0f} %", _ms(row.refused.p50), _ms(row.refused.p99)]
    return [*rates, *_latency(row.accepted), str(row.late), *refused]


def _latency(latency: Latency) -> list[str]:
    return [_ms(latency.p50), _ms(latency.p90), _ms(latency.p99)]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def _spread(spread: Spread, digits: int = 0, factor: float = 1.0) -> str:
    values = (spread.median, spread.least, spread.greatest)
    middle, low, high = (f"{factor * value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def _table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"body", "views"} else "right")
    for row in rows:
        table.add_row(*row)
    return table
