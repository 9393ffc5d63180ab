"""The measurements, one after the other; what is compared alternates.

Machines are noisy and shared: a ratio is of two runs that follow each other, and a figure is the
median of several rounds.
"""

import asyncio
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from service import cpu_info
from service.bench import load, photos, scrape
from service.bench.client import Client, Target
from service.bench.figures import (
    Closed,
    Latency,
    Level,
    Lone,
    Memory,
    Report,
    Spread,
    Start,
    Sustained,
)
from service.bench.limit import Limit
from service.bench.load import Run, quantile
from service.bench.process import serving
from service.errors import BenchError
from service.settings import Settings

WAYS = (
    *(("form", 1), ("form", 4), ("form", 16), ("form", 64), ("form", 256)),
    *(("raw", 1), ("raw", 64)),
)  # how an image is sent, over how many connections
BUSY = 64  # connections that keep every lane at work
LOADS = (1.0, 1.5, 2.0, 4.0)
VIEWS = ("ten", "dense", "paper")
_STAGED = 20  # requests of each caller, for the stages
_SEARCHES = 6  # halvings of the sustained rate's range
_SLO_SECONDS, _SLO_ALONE = 0.1, 0.013  # 100 ms where decode and forward alone take 13 ms


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure."""

    seconds: float  # of one run
    rounds: int
    requests: int  # after which memory is compared with that after a tenth of them
    slo: float  # seconds; 0: by the time of a lone image
    deadline: float  # seconds of each request in the open loop


Say = Callable[[str], None]


def _asks(target: Target, images: Sequence[bytes], deadline: float) -> dict[str, list[bytes]]:
    """Prepare the requests for each image: as a form, as the body, as a form with a deadline."""
    path = "/classify?views=single"
    kind = {"Content-Type": "image/jpeg"}
    until = {"X-Timeout-Ms": str(round(1000 * deadline))}
    return {
        "form": [target.post_form(path, image, {}) for image in images],
        "raw": [target.post(path, image, kind) for image in images],
        "dated": [target.post_form(path, image, until) for image in images],
    }


async def other(url: str, folder: Path, options: Options, say: Say) -> Report:
    """Measure the service that runs at `url`."""
    images = photos.read(folder, say)
    with closing(Client(Target.parse(url))) as client:
        return await _Measurement(client, None, images, options, say).report(None)


async def ours(settings: Settings, folder: Path, options: Options, say: Say) -> Report:
    """Measure a service of one's own, beside what its engine does without one."""
    images = photos.read(folder, say)
    chosen = settings.model_dump(include=settings.model_fields_set - {"host", "port", "log_level"})
    arguments = [
        *(f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()),
        "--log-level=warning",
    ]
    say("starting the service, twice")
    async with serving(arguments) as first:
        seconds = first.seconds
    async with AsyncExitStack() as life:
        started = await life.enter_async_context(serving(arguments))
        limit = life.enter_context(Limit(settings, folder))
        measurement = _Measurement(started.client, limit, images, options, say)
        return await measurement.report(Start(seconds, started.seconds))


class _Measurement:
    """Everything measured on one service."""

    def __init__(
        self,
        client: Client,
        limit: Limit | None,
        images: Sequence[bytes],
        options: Options,
        say: Say,
    ) -> None:
        self._client, self._limit, self._options, self._say = client, limit, options, say
        self._asks = _asks(client.target, images, options.deadline)

    async def report(self, start: Start | None) -> Report:
        """Measure it all; what needs an engine of one's own only if there is one."""
        subject = await self._subject()
        limit = self._limit
        forwards = await asyncio.to_thread(limit.forwards) if limit else None
        rounds = [await self._round(number) for number in range(self._options.rounds)]
        alone = Spread.of([one.alone for one in rounds]) if limit else None
        return Report(
            subject,
            start=start,
            forwards=forwards,
            limit=Spread.of([one.limit for one in rounds]) if limit else None,
            closed=_closed(rounds),
            lone=_lone(rounds) if limit else None,
            stages={number: await self._stages(number) for number in (1, BUSY)},
            views=await self._views(limit) if limit else None,
            sustained=await self._sustained(alone),
            levels=[await self._level(load_) for load_ in LOADS],
            memory=await self._memory(),
        )

    async def _subject(self) -> dict[str, str]:
        """Say what is measured, and on what machine; warms the service up with it."""
        target = self._client.target
        reply = await self._client.ask(target.get("/models"))
        if reply.status != load.OK:
            raise BenchError(f"no service that is ready answers at {target.host}:{target.port}")
        try:
            model = json.loads(reply.body)["models"][0]
            known = {name: model[name] for name in ("name", "version", "device", "precision")}
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(f"no googlenet-service is at {target.host}:{target.port}") from error
        await self._answered(BUSY)
        return {
            **known,
            "python": platform.python_version(),
            "machine": f"{cpu_info.available()} x {_processor(Path('/proc/cpuinfo'))}",
        }

    async def _run(self, body: str, connections: int) -> Run:
        requests, seconds = self._asks[body], self._options.seconds
        return await load.closed(self._client, requests, connections=connections, seconds=seconds)

    async def _answered(self, connections: int) -> Run:
        """Run with forms, and with no use for a run in which nothing was answered."""
        run = await self._run("form", connections)
        if not run.accepted:
            seconds = self._options.seconds
            raise BenchError(f"no image was classified in {seconds:g} s at {connections} callers")
        return run

    async def _round(self, number: int) -> "_Round":
        self._say(f"round {number + 1} of {self._options.rounds}")
        runs, limits, alone = {}, {}, 0.0
        for way in WAYS:
            if self._limit:
                rate = self._limit.rate
                limits[way] = await asyncio.to_thread(rate, "single", self._options.seconds)
            runs[way] = await self._run(*way)
        if self._limit:
            alone = await asyncio.to_thread(self._limit.alone)
        return _Round(runs, limits, alone)

    async def _stages(self, connections: int) -> dict[str, float]:
        """Say where the time of a request goes, its way to the service and back included."""
        self._say(f"stages at {connections} connections")
        count = _STAGED * connections
        before = await scrape.scrape(self._client)
        latencies = await load.so_many(
            self._client, self._asks["form"], count, connections=connections
        )
        found = scrape.stages(before, await scrape.scrape(self._client))
        return {**found, "way": mean(latencies) - sum(found.values())}

    async def _views(self, limit: Limit) -> dict[str, float]:
        """Compare the cost of an image by plan with that of `single`, without a server."""
        costs = {}
        for plan in VIEWS:
            self._say(f"views {plan}")
            seconds = self._options.seconds * 2
            single = await asyncio.to_thread(limit.rate, "single", self._options.seconds)
            costs[plan] = single / await asyncio.to_thread(limit.rate, plan, seconds)
        return costs

    async def _sustained(self, alone: Spread | None) -> Sustained:
        """Search the largest rate of random arrivals that keeps to the objective."""
        objective = self._options.slo or _SLO_SECONDS * (alone.median / _SLO_ALONE if alone else 1)
        low, high, p99 = 0.0, (await self._answered(BUSY)).rate, 0.0
        for _ in range(_SEARCHES):
            rate = (low + high) / 2
            self._say(f"random arrivals, {rate:.0f} a second")
            run = await self._paced(rate)
            found = quantile(run.accepted, 0.99)
            if found <= objective and not run.refused:
                low, p99 = rate, found
            else:
                high = rate
        return Sustained(objective, low, p99)

    async def _paced(self, rate: float) -> Run:
        seconds = self._options.seconds
        return await load.paced(self._client, self._asks["dated"], rate=rate, seconds=seconds)

    async def _level(self, share: float) -> Level:
        self._say(f"random arrivals at {share:g} x the maximum")
        most = (await self._answered(BUSY)).rate
        run = await self._paced(share * most)
        deadline = self._options.deadline
        goodput = run.within(deadline)
        return Level(
            load=share,
            offered=share * most,
            goodput=goodput,
            ratio=goodput / most,
            late=sum(latency > deadline for latency in run.accepted),
            accepted=Latency.of(run.accepted),
            refused=Latency.of(run.refused),
            refused_share=len(run.refused) / max(len(run.samples), 1),
        )

    async def _memory(self) -> Memory:
        """Compare the memory after many requests with that after a tenth of them."""
        tenth = self._options.requests // 10
        nbytes = []
        for count in (tenth, self._options.requests - tenth):
            self._say(f"{count} requests")
            await load.so_many(self._client, self._asks["form"], count, connections=BUSY)
            nbytes.append(scrape.memory(await scrape.scrape(self._client)))
        return Memory((tenth, self._options.requests), (nbytes[0], nbytes[1]))


@dataclass(frozen=True, slots=True)
class _Round:
    runs: dict[tuple[str, int], Run]
    limits: dict[tuple[str, int], float]  # each taken just before the run
    alone: float

    @property
    def limit(self) -> float:
        return median(self.limits.values())


def _closed(rounds: Sequence[_Round]) -> list[Closed]:
    return [
        Closed.of(
            *way,
            [one.runs[way] for one in rounds],
            [one.limits[way] for one in rounds if one.limits],
        )
        for way in WAYS
    ]


def _lone(rounds: Sequence[_Round]) -> Lone:
    seconds = [quantile(one.runs["form", 1].accepted, 0.5) for one in rounds]
    alone = [one.alone for one in rounds]
    ratios = [mine / least for mine, least in zip(seconds, alone, strict=True)]
    return Lone(Spread.of(seconds), Spread.of(alone), Spread.of(ratios))


def _processor(cpuinfo: Path) -> str:
    """Name the processor, as well as this system tells."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
