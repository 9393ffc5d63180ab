"""The report as a table and JSON: medians, and ratios to our service within each round."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.peers.deployments import OURS
from benchmarks.peers.measuring import Leg

Case = tuple[str, str, str, int]  # server, engine, body, connections
Failures = Mapping[str, str]  # server and engine: the reason

_COLUMNS = (
    "server", "engine", "body", "connections", "images/s", "of ours", "min-max",
    "p50 ms", "p99 ms", "errors",
)  # fmt: skip


def ratios(legs: Sequence[Leg]) -> dict[Case, list[float]]:
    """Divide each leg's rate by ours in the same round, with the same body and connections."""
    ours = {(leg.round, leg.body, leg.connections): leg.rate for leg in legs if leg.server == OURS}
    result: dict[Case, list[float]] = defaultdict(list)
    for leg in legs:
        base = ours.get((leg.round, leg.body, leg.connections))
        if base:
            result[_case(leg)].append(leg.rate / base)
    return result


def _case(leg: Leg) -> Case:
    return leg.server, leg.engine, leg.body, leg.connections


def table(legs: Sequence[Leg]) -> Table:
    """Make a row for each case, fastest first."""
    cases: dict[Case, list[Leg]] = defaultdict(list)
    for leg in legs:
        cases[_case(leg)].append(leg)
    against = ratios(legs)
    table_ = Table(*_COLUMNS[:3])
    for heading in _COLUMNS[3:]:
        table_.add_column(heading, justify="right")
    order = sorted(cases, key=lambda case: (case[3], -median(leg.rate for leg in cases[case])))
    for before, case in zip([order[0], *order], order, strict=False):
        if case[3] != before[3]:
            table_.add_section()
        table_.add_row(*_row(case, cases[case], against.get(case, [])))
    return table_


def _row(case: Case, legs: Sequence[Leg], against: Sequence[float]) -> list[str]:
    errors = sum(sum(leg.errors.values()) for leg in legs)
    return [
        *map(str, case),
        f"{median(leg.rate for leg in legs):.1f}",
        f"{median(against):.2f}" if against else "",
        f"{min(against):.2f}-{max(against):.2f}" if against else "",
        f"{1e3 * median(leg.p50 for leg in legs):.1f}",
        f"{1e3 * median(leg.p99 for leg in legs):.1f}",
        str(errors),
    ]


def write(
    file: Path, legs: Sequence[Leg], failures: Failures, settings: Mapping[str, object]
) -> None:
    """Write all measurements."""
    content = {
        "settings": settings,
        "failures": failures,
        "legs": [dataclasses.asdict(leg) for leg in legs],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
