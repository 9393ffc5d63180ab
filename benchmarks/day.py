"""A day of the service in ten minutes, to check which alerts fire.

    python benchmarks/day.py [IMAGE]

A real Prometheus scrapes a real service, by the shipped rules with every window and every `for:`
divided by 120. The phases are ordinary hours, bad clients, rushes, a worker that hangs, one that
is killed, a restart loop and an outage; after each, the alerts that fired are compared with those
expected. Exits with 1 if any was wrong. IMAGE is a PNG file for the overview dashboard.

Needs `prometheus` on the path, and Linux.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.dashboard import View, draw
from benchmarks.day_service import (
    DIGIT,
    ROOT,
    SCRAPE,
    Note,
    Service,
    kill_worker,
    restart_often,
    stop_service,
    stop_worker,
    supervised,
)
from benchmarks.prometheus import Prometheus, watching
from service.bench import load
from service.bench.client import Client, Target
from service.bench.process import free_port

FASTER = 120
HOUR = 3600 / FASTER  # seconds
WIDTH = 120  # columns without a terminal
OVERVIEW = ROOT / "deploy/grafana/overview.json"

Incident = Callable[[Service, Note], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class Traffic:
    """A rate of requests of one kind."""

    kind: str
    rate: float  # requests a second


@dataclass(frozen=True, slots=True)
class Phase:
    """Some hours: the traffic, an incident, the alerts that have to fire and those that may."""

    name: str
    hours: float
    traffic: Sequence[Traffic]
    must: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    incident: Incident | None = None

    @property
    def allowed(self) -> frozenset[str]:
        """All alerts that may fire."""
        return self.must | self.may


@dataclass(slots=True)
class Day:
    """The state of all alerts, and a log of events."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    states: dict[str, str] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)  # in this phase

    def note(self, event: str) -> None:
        """Print an event."""
        hours = (time.monotonic() - self.started) / HOUR
        self.console.print(f"{int(hours):02}:{int(hours % 1 * 60):02}  {event}", highlight=False)

    def poll(self, prometheus: Prometheus) -> None:
        """Note the alerts whose state has changed."""
        alerts = prometheus.get("alerts")["alerts"]
        now = {alert["labels"]["alertname"]: alert["state"] for alert in alerts}
        for name in sorted({*self.states, *now}):
            before, after = self.states.get(name, "inactive"), now.get(name, "inactive")
            if before != after:
                colour = {"firing": "red", "pending": "yellow"}.get(after, "green")
                self.note(f"    [{colour}]{short(name)}: {before} -> {after}[/]")
                if after == "firing":
                    self.fired.add(name)
        self.states = now

    @property
    def firing(self) -> set[str]:
        """The alerts that are firing."""
        return {name for name, state in self.states.items() if state == "firing"}


FAST, SLOW = "GooglenetErrorBudgetBurnFast", "GooglenetErrorBudgetBurnSlow"
LATE, WAIT, FULL = "GooglenetLatencyHigh", "GooglenetQueueWaitHigh", "GooglenetOverloaded"
STALLED, LOOP, FAILED = "GooglenetWorkerStalled", "GooglenetRestartLoop", "GooglenetBatchesFail"
NONE, NOT = "GooglenetNoneReady", "GooglenetNotReady"
DOWN, ABSENT = "GooglenetTargetDown", "GooglenetAbsent"


def short(alert: str) -> str:
    """Return a name without the common prefix."""
    return alert.removeprefix("Googlenet")


def listed(alerts: Iterable[str]) -> str:
    """Join names for a table cell."""
    return ", ".join(sorted(map(short, alerts)))


def names(*alerts: str) -> frozenset[str]:
    """Make a set of names."""
    return frozenset(alerts)


def calm(name: str, hours: float, rate: float = 15) -> Phase:
    """Ordinary hours; earlier errors are still in the long windows of the slow burn alert."""
    return Phase(name, hours, [Traffic("good", rate)], may=names(SLOW))


# A start takes seconds, which are a quarter of an hour of this day: long enough for the alerts of a
# start that fails.
STARTING = names(FAST, SLOW, FULL, NOT, DOWN, ABSENT)
PHASES = (
    Phase("night", 1.5, [Traffic("good", 4)]),
    Phase("bad clients: nine of ten requests are invalid", 2,
        [Traffic("good", 4), Traffic("bad", 40)]),
    Phase("morning", 1, [Traffic("good", 20)]),
    Phase("rush: many times the capacity, with timeouts of 0.4 s", 1.5, [Traffic("hasty", 220)],
        must=names(FAST, SLOW, FULL), may=names(LATE, WAIT)),
    calm("after the rush", 1.5),
    Phase("rush: more than the capacity, with timeouts of 5 s", 1.5,
        [Traffic("good", 200)], must=names(FULL, FAST, LATE, WAIT), may=names(SLOW)),
    calm("after the second rush", 1.5),
    Phase("the worker hangs in a batch", 1.5, [Traffic("good", 15)], must=names(STALLED, FAST),
        may=names(SLOW, FULL, LATE, WAIT), incident=stop_worker),
    calm("the worker continues", 1.5),
    Phase("the worker is killed", 1.5, [Traffic("good", 15)], must=names(NONE),
        may=STARTING | names(FAILED), incident=kill_worker),
    calm("afternoon", 1),
    Phase("restart loop", 1, [Traffic("good", 4)], must=names(LOOP, NONE), may=STARTING,
        incident=restart_often),
    calm("evening", 1.5),
    Phase("outage", 1, [Traffic("good", 4)], must=names(DOWN, ABSENT), may=STARTING | names(NONE),
        incident=stop_service),
    calm("night", 1, 4),
)  # fmt: skip


def requests(target: Target) -> dict[str, list[bytes]]:
    """Prepare the requests of each kind."""
    good = DIGIT.read_bytes()
    png = {"Content-Type": "image/png"}
    return {
        "good": [target.post("/classify?views=single", good, png)],
        "hasty": [target.post("/classify?views=single", good, {**png, "X-Timeout-Ms": "400"})],
        "bad": [
            target.post("/classify", b"not an image", png),
            target.post("/classify", good[: len(good) // 2], png),
            target.post("/classify", b"", png),
            target.post("/classify?views=all", good, png),
            target.post("/classify?top_k=0", good, png),
        ],
    }


async def run_phase(phase: Phase, service: Service, client: Client, note: Note) -> None:
    """Send a phase's traffic, with its incident."""
    prepared = requests(client.target)
    async with asyncio.TaskGroup() as tasks:
        for traffic in phase.traffic:
            body = prepared[traffic.kind]
            seconds = phase.hours * HOUR
            tasks.create_task(load.open_loop(client, body, rate=traffic.rate, seconds=seconds))
        if phase.incident:
            tasks.create_task(phase.incident(service, note))


@asynccontextmanager
async def polling(day: Day, prometheus: Prometheus) -> AsyncIterator[None]:
    """Poll the alerts meanwhile."""

    async def poll() -> None:
        while True:
            await asyncio.to_thread(day.poll, prometheus)
            await asyncio.sleep(SCRAPE)

    task = asyncio.create_task(poll())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def errors(phase: Phase, fired: set[str], firing: set[str], inherited: frozenset[str]) -> list[str]:
    """List the alerts that did not fire, should not have fired, or did not end.

    Those that were pending at the begin of a phase are `inherited`: the phase before is the cause.
    """
    return [
        *(f"{short(name)} did not fire" for name in sorted(phase.must - fired - firing)),
        *(f"{short(name)} fired" for name in sorted(fired - phase.allowed - inherited)),
        *(f"{short(name)} did not end" for name in sorted(firing - fired - phase.allowed)),
    ]


async def run(console: Console, folder: Path, drawing: Path | None) -> bool:
    """Run all phases; returns whether all alerts were right."""
    start = time.time()
    client = Client(Target("127.0.0.1", free_port()))
    table = Table("phase", "fired", "firing at its end", "verdict", title="The day")
    is_right = True
    async with supervised(client) as service:
        with watching(client.target.port, folder, every=SCRAPE, faster=FASTER) as prometheus:
            while prometheus.get("alerts")["alerts"]:  # noqa: ASYNC110 - absent until it is scraped
                await asyncio.sleep(SCRAPE)
            day = Day(console)
            async with polling(day, prometheus):
                for before, phase in pairwise([Phase("", 0, []), *PHASES]):
                    day.note(f"[bold]{phase.name}[/]")
                    day.fired.clear()
                    inherited = before.allowed.intersection(day.states)
                    await run_phase(phase, service, client, day.note)
                    wrong = errors(phase, day.fired, day.firing, inherited)
                    is_right = is_right and not wrong
                    table.add_row(
                        phase.name,
                        listed(day.fired),
                        listed(day.firing),
                        "; ".join(wrong) or "right",
                    )
            if drawing:
                view = View(prometheus, "googlenet", start, time.time(), f"{8 * SCRAPE:g}s", HOUR)
                draw(OVERVIEW, view, drawing, height=39)
    console.print(table)
    return is_right


def main() -> int:
    """Run the day; returns 1 if an alert was wrong, 2 without Prometheus."""
    if not shutil.which("prometheus"):
        Console(stderr=True).print("prometheus is not on the path")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        drawing = Path(sys.argv[1]) if sys.argv[1:] else None
        return 0 if asyncio.run(run(console, Path(folder), drawing)) else 1


if __name__ == "__main__":
    sys.exit(main())
