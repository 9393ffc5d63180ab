"""A day of the service in minutes, to see that the right alerts fire.

    python benchmarks/day.py [IMAGE]

A real Prometheus scrapes a real service, under the rules that are shipped with every window and
every `for:` divided by 120. The service is driven through ordinary hours, bad clients, rushes, a
worker that hangs, one that is killed, a restart loop and an outage; after each of these hours the
alerts that fired are compared with those that should have. Gives 1 if any was wrong. IMAGE is
where the overview is drawn at the end, as a PNG.

Needs `prometheus` on the path, and Linux.
"""

import asyncio
import os
import shutil
import signal
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

from benchmarks.image import View, draw
from benchmarks.prometheus import Prometheus, watching
from service import python_process
from service.bench import load
from service.bench.client import Client, Target
from service.bench.process import free_port

FASTER = 120
HOUR = 3600 / FASTER  # seconds
LOOK = 0.5  # seconds between two scrapes, and between two looks at the alerts
PROBE, PROBE_FAILURES = 0.5, 3  # what restarts the service: seconds, and how many in a row
WIDTH = 120  # columns, where there is no terminal
ROOT = Path(__file__).parents[1]
DIGIT = ROOT / "model_store/digits/held_out/3.png"
OVERVIEW = ROOT / "deploy/grafana/overview.json"

# Small and quick to start: one core computes, one is left for the rest.
OPTIONS = (
    *("--model", "digits", "--device", "cpu", "--precision", "float32", "--cpu-threads", "1"),
    *("--max-batch", "8", "--timeout-seconds", "5"),
)


class Service:
    """The service, and what starts it again when it has ended or its liveness probe fails."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.process: asyncio.subprocess.Process | None = None
        self.wanted = asyncio.Event()  # else it is not started again
        self.wanted.set()

    async def supervise(self) -> None:
        """Keep it running until this is cancelled."""
        port = str(self._client.target.port)
        command = python_process.command("service", "serve", "--port", port, *OPTIONS)
        while True:
            await self.wanted.wait()
            self.process = await asyncio.create_subprocess_exec(
                *command, stderr=asyncio.subprocess.DEVNULL, env=python_process.environment()
            )
            probing = asyncio.create_task(self._probe(self.process))
            try:
                await self.process.wait()
            except asyncio.CancelledError:
                self.process.terminate()
                await self.process.wait()
                raise
            finally:
                probing.cancel()

    async def _probe(self, process: asyncio.subprocess.Process) -> None:
        while not await self.is_well("/startupz"):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(PROBE)
        failures = 0
        while failures < PROBE_FAILURES:
            await asyncio.sleep(PROBE)
            failures = 0 if await self.is_well("/livez") else failures + 1
        process.kill()

    async def is_well(self, probe: str) -> bool:
        """Ask a probe."""
        return (await self._client.ask(self._client.target.get(probe))).status == load.OK

    async def ask_for_much(self) -> None:
        """Send an image that takes a second or so."""
        png = {"Content-Type": "image/png"}
        target = self._client.target
        await self._client.ask(target.post("/classify?views=paper", DIGIT.read_bytes(), png))

    @property
    def pid(self) -> int:
        """The process that serves HTTP."""
        assert self.process is not None  # noqa: S101 - who asks has waited for it
        return self.process.pid

    @property
    def worker(self) -> int:
        """The process that computes."""
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        (number,) = [number for one in lists for number in one.read_text().split()]
        return int(number)

    async def become_ready(self) -> None:
        """Wait until requests may be sent."""
        while not await self.is_well("/readyz"):  # noqa: ASYNC110 - the same
            await asyncio.sleep(PROBE)


Note = Callable[[str], None]
Act = Callable[[Service, Note], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class Traffic:
    """So many requests a second, of one kind."""

    kind: str
    rate: float


@dataclass(frozen=True, slots=True)
class Phase:
    """Some hours: what happens, which alerts have to fire, and which others may."""

    name: str
    hours: float
    traffic: Sequence[Traffic]
    must: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    act: Act | None = None

    @property
    def allowed(self) -> frozenset[str]:
        """All that may fire."""
        return self.must | self.may


@dataclass(slots=True)
class Day:
    """What has happened so far, and which alerts are active."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    states: dict[str, str] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)  # in this phase

    def note(self, what: str) -> None:
        """Print what happens now."""
        hours = (time.monotonic() - self.started) / HOUR
        self.console.print(f"{int(hours):02}:{int(hours % 1 * 60):02}  {what}", highlight=False)

    def look(self, prometheus: Prometheus) -> None:
        """Note every alert whose state has changed."""
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
        """The alerts that fire now."""
        return {name for name, state in self.states.items() if state == "firing"}


async def stop_worker(service: Service, note: Note) -> None:
    """Stop the worker in a batch, for longer than any batch may take, and let it go on."""
    worker = service.worker
    large = asyncio.create_task(service.ask_for_much())
    await asyncio.sleep(0.3)  # a part of what it takes
    os.kill(worker, signal.SIGSTOP)
    note(">>> the worker is stopped (SIGSTOP)")
    try:
        await asyncio.sleep(30)
    finally:
        os.kill(worker, signal.SIGCONT)
        note(">>> the worker goes on (SIGCONT)")
    await large


async def kill_worker(service: Service, note: Note) -> None:
    """Kill the worker: the liveness probe fails, and the service is started again."""
    os.kill(service.worker, signal.SIGKILL)
    note(">>> the worker is killed")
    await asyncio.sleep(PROBE * (PROBE_FAILURES + 1))
    await service.become_ready()
    note(">>> it was started again, and is ready")


async def restart_often(service: Service, note: Note) -> None:
    """Kill the service as soon as it was scraped, five times."""
    for _ in range(5):
        old = service.pid
        service.process.kill()  # type: ignore[union-attr]  # `pid` has looked
        note(">>> the service is killed")
        while service.pid == old or not await service.is_well("/metrics"):  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * LOOK)
    await service.become_ready()
    note(">>> it is ready")


async def be_gone(service: Service, note: Note) -> None:
    """End the service, and start it again later."""
    service.wanted.clear()
    service.process.kill()  # type: ignore[union-attr]  # it runs
    note(">>> the service is killed, and nothing starts it")
    await asyncio.sleep(10)
    service.wanted.set()
    await service.become_ready()
    note(">>> it was started again, and is ready")


FAST, SLOW = "GooglenetErrorBudgetBurnFast", "GooglenetErrorBudgetBurnSlow"
LATE, WAIT, FULL = "GooglenetLatencyHigh", "GooglenetQueueWaitHigh", "GooglenetOverloaded"
STALLED, LOOP, FAILED = "GooglenetWorkerStalled", "GooglenetRestartLoop", "GooglenetBatchesFail"
NONE, NOT = "GooglenetNoneReady", "GooglenetNotReady"
DOWN, ABSENT = "GooglenetTargetDown", "GooglenetAbsent"


def short(alert: str) -> str:
    """Leave out what all names begin with."""
    return alert.removeprefix("Googlenet")


def listed(alerts: Iterable[str]) -> str:
    """Write them in a line."""
    return ", ".join(sorted(map(short, alerts)))


def names(*alerts: str) -> frozenset[str]:
    """Make a set."""
    return frozenset(alerts)


def calm(name: str, hours: float, rate: float = 15) -> Phase:
    """Ordinary hours; what went wrong before them is still in the windows of days."""
    return Phase(name, hours, [Traffic("good", rate)], may=names(SLOW))


# A start takes seconds, which on this clock are a quarter of an hour: what is over before anybody
# is told on other days is long enough here for the alerts of a start that fails.
STARTING = names(FAST, SLOW, FULL, NOT, DOWN, ABSENT)
PHASES = (
    Phase("night", 1.5, [Traffic("good", 4)]),
    Phase("bad clients: nine of ten requests are their own mistakes", 2,
        [Traffic("good", 4), Traffic("bad", 40)]),
    Phase("morning", 1, [Traffic("good", 20)]),
    Phase("rush: many times what can be done, each within 0.4 s", 1.5, [Traffic("hasty", 220)],
        must=names(FAST, SLOW, FULL), may=names(LATE, WAIT)),
    calm("after the rush", 1.5),
    Phase("rush of the patient: more than can be done, each within 5 s", 1.5,
        [Traffic("good", 200)], must=names(FULL, FAST, LATE, WAIT), may=names(SLOW)),
    calm("after it", 1.5),
    Phase("the worker hangs in a batch", 1.5, [Traffic("good", 15)], must=names(STALLED, FAST),
        may=names(SLOW, FULL, LATE, WAIT), act=stop_worker),
    calm("it goes on", 1.5),
    Phase("the worker is killed", 1.5, [Traffic("good", 15)], must=names(NONE),
        may=STARTING | names(FAILED), act=kill_worker),
    calm("afternoon", 1),
    Phase("restart loop", 1, [Traffic("good", 4)], must=names(LOOP, NONE), may=STARTING,
        act=restart_often),
    calm("evening", 1.5),
    Phase("outage", 1, [Traffic("good", 4)], must=names(DOWN, ABSENT), may=STARTING | names(NONE),
        act=be_gone),
    calm("night", 1, 4),
)  # fmt: skip


def requests(target: Target) -> dict[str, list[bytes]]:
    """Prepare what is sent, by kind."""
    good = DIGIT.read_bytes()
    png = {"Content-Type": "image/png"}
    return {
        "good": [target.post("/classify?views=single", good, png)],
        "hasty": [target.post("/classify?views=single", good, {**png, "X-Timeout-Ms": "400"})],
        "bad": [
            target.post("/classify", b"no image", png),
            target.post("/classify", good[: len(good) // 2], png),
            target.post("/classify", b"", png),
            target.post("/classify?views=all", good, png),
            target.post("/classify?top_k=0", good, png),
        ],
    }


async def live(phase: Phase, service: Service, client: Client, note: Note) -> None:
    """Drive a phase to its end."""
    prepared = requests(client.target)
    async with asyncio.TaskGroup() as tasks:
        for traffic in phase.traffic:
            sent = prepared[traffic.kind]
            seconds = phase.hours * HOUR
            tasks.create_task(load.paced(client, sent, rate=traffic.rate, seconds=seconds))
        if phase.act:
            tasks.create_task(phase.act(service, note))


@asynccontextmanager
async def supervised(client: Client) -> AsyncIterator[Service]:
    """Run the service."""
    service = Service(client)
    supervising = asyncio.create_task(service.supervise())
    try:
        await service.become_ready()
        yield service
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        client.close()


@asynccontextmanager
async def looking(day: Day, prometheus: Prometheus) -> AsyncIterator[None]:
    """Look at the alerts meanwhile."""

    async def look() -> None:
        while True:
            await asyncio.to_thread(day.look, prometheus)
            await asyncio.sleep(LOOK)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def judge(phase: Phase, fired: set[str], firing: set[str], inherited: frozenset[str]) -> list[str]:
    """Say what is wrong: alerts that did not fire, that should not have, that did not end.

    One that was pending when the phase began is inherited: what came before is its cause.
    """
    return [
        *(f"{short(name)} did not fire" for name in sorted(phase.must - fired - firing)),
        *(f"{short(name)} fired" for name in sorted(fired - phase.allowed - inherited)),
        *(f"{short(name)} does not end" for name in sorted(firing - fired - phase.allowed)),
    ]


async def run(console: Console, folder: Path, drawing: Path | None) -> bool:
    """Live through all phases; tells whether all alerts were right."""
    began = time.time()
    client = Client(Target("127.0.0.1", free_port()))
    table = Table("phase", "fired", "firing at its end", "verdict", title="The day")
    is_right = True
    async with supervised(client) as service:
        with watching(client.target.port, folder, every=LOOK, faster=FASTER) as prometheus:
            while prometheus.get("alerts")["alerts"]:  # noqa: ASYNC110 - absent until it is scraped
                await asyncio.sleep(LOOK)
            day = Day(console)
            async with looking(day, prometheus):
                for before, phase in pairwise([Phase("", 0, []), *PHASES]):
                    day.note(f"[bold]{phase.name}[/]")
                    day.fired.clear()
                    inherited = before.allowed.intersection(day.states)
                    await live(phase, service, client, day.note)
                    wrong = judge(phase, day.fired, day.firing, inherited)
                    is_right = is_right and not wrong
                    table.add_row(
                        phase.name,
                        listed(day.fired),
                        listed(day.firing),
                        "; ".join(wrong) or "right",
                    )
            if drawing:
                view = View(prometheus, "googlenet", began, time.time(), f"{8 * LOOK:g}s", HOUR)
                draw(OVERVIEW, view, drawing, height=39)
    console.print(table)
    return is_right


def main() -> int:
    """Live through the day; gives 1 if an alert was wrong, 2 if there is no Prometheus."""
    if not shutil.which("prometheus"):
        Console(stderr=True).print("prometheus is not on the path")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        drawing = Path(sys.argv[1]) if sys.argv[1:] else None
        return 0 if asyncio.run(run(console, Path(folder), drawing)) else 1


if __name__ == "__main__":
    sys.exit(main())
