"""The measurements of a benchmark, one after the other.

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
from service.bench import load, photos, process_usage, scrape
from service.bench.client import Client, Target
from service.bench.figures import (
    Closed,
    Latency,
    Level,
    Lone,
    Measured,
    Memory,
    Report,
    Spread,
    Start,
    Sustained,
)
from service.bench.load import Run, quantile
from service.bench.process import serving
from service.bench.throughput_limit import Limit
from service.errors import BenchError
from service.settings import Settings

WAYS = (
    *(("form", 1), ("form", 4), ("form", 16), ("form", 64), ("form", 256)),
    *(("raw", 1), ("raw", 64)),
)  # how an image is sent, over how many connections
BUSY = 64  # connections that keep every executor busy
LOADS = (1.0, 1.5, 2.0, 4.0)
VIEWS = ("ten", "dense", "paper")
_STAGED = 20  # requests of each connection, for the stages
_SEARCHES = 6  # bisections of the sustained rate
_SLO_SECONDS, _SLO_ALONE = 0.1, 0.013  # 100 ms where decoding and inference take 13 ms


@dataclass(frozen=True, slots=True)
class Options:
    """Durations and limits of a benchmark."""

    seconds: float  # of one run
    rounds: int
    requests: int  # after which memory is compared with that after a tenth of them
    slo: float  # seconds; 0: a multiple of one image's time
    deadline: float  # seconds of each request in the open loop


Say = Callable[[str], None]


def _requests(target: Target, images: Sequence[bytes], deadline: float) -> dict[str, list[bytes]]:
    """Prepare each image's requests: as a form, as the body, as a form with a deadline."""
    path = "/classify?views=single"
    kind = {"Content-Type": "image/jpeg"}
    timeout = {"X-Timeout-Ms": str(round(1000 * deadline))}
    return {
        "form": [target.post_form(path, image, {}) for image in images],
        "raw": [target.post(path, image, kind) for image in images],
        "dated": [target.post_form(path, image, timeout) for image in images],
    }


async def other(url: str, folder: Path, options: Options, say: Say) -> Report:
    """Measure the service that runs at `url`."""
    images = photos.read(folder, say)
    with closing(Client(Target.parse(url))) as client:
        return await _Measurement(client, None, None, images, options, say).report(None)


async def own(settings: Settings, folder: Path, options: Options, say: Say) -> Report:
    """Start a service and measure it, and what its engine does without a server."""
    images = photos.read(folder, say)
    chosen = settings.model_dump(include=settings.model_fields_set - {"host", "port", "log_level"})
    arguments = [
        *(f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()),
        "--log-level=warning",
    ]
    say("starting the service, twice")
    async with serving(arguments) as first:
        seconds = first.seconds
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(serving(arguments))
        limit = stack.enter_context(Limit(settings, folder))
        measurement = _Measurement(started.client, started.pid, limit, images, options, say)
        return await measurement.report(Start(seconds, started.seconds))


class _Measurement:
    """The measurements of one service."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that is measured, and how
        self,
        client: Client,
        pid: int | None,  # of the service, if it runs here
        limit: Limit | None,
        images: Sequence[bytes],
        options: Options,
        say: Say,
    ) -> None:
        self._client, self._pid, self._limit = client, pid, limit
        self._options, self._say = options, say
        self._requests = _requests(client.target, images, options.deadline)

    async def report(self, start: Start | None) -> Report:
        """Measure everything; without a `Limit`, only what needs no engine in this process."""
        subject = await self._subject()
        limit = self._limit
        forwards = await asyncio.to_thread(limit.forwards) if limit else None
        rounds = [await self._round(number) for number in range(self._options.rounds)]
        alone = Spread.of([round_.alone for round_ in rounds]) if limit else None
        return Report(
            subject,
            start=start,
            forwards=forwards,
            limit=Spread.of([round_.limit for round_ in rounds]) if limit else None,
            closed=_closed(rounds),
            lone=_lone(rounds) if limit else None,
            stages={number: await self._stages(number) for number in (1, BUSY)},
            views=await self._views(limit) if limit else None,
            sustained=await self._sustained(alone),
            levels=[await self._level(load_) for load_ in LOADS],
            memory=await self._memory(),
        )

    async def _subject(self) -> dict[str, str]:
        """Warm the service up; returns its model and the machine."""
        target = self._client.target
        reply = await self._client.ask(target.get("/models"))
        if reply.status != load.OK:
            raise BenchError(f"no ready service at {target.host}:{target.port}")
        try:
            model = json.loads(reply.body)["models"][0]
            subject = {name: model[name] for name in ("name", "version", "device", "precision")}
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(f"no googlenet-service at {target.host}:{target.port}") from error
        await self._checked_run(BUSY)
        return {
            **subject,
            "python": platform.python_version(),
            "machine": f"{cpu_info.available()} x {cpu_info.model_name()}",
        }

    async def _run(self, body: str, connections: int) -> Run:
        requests, seconds = self._requests[body], self._options.seconds
        return await load.closed_loop(
            self._client, requests, connections=connections, seconds=seconds
        )

    async def _checked_run(self, connections: int) -> Run:
        """Run with forms; raises `BenchError` if no image was classified."""
        run = await self._run("form", connections)
        if not run.accepted:
            seconds = self._options.seconds
            raise BenchError(
                f"no image was classified in {seconds:g} s over {connections} connections"
            )
        return run

    async def _round(self, number: int) -> "_Round":
        self._say(f"round {number + 1} of {self._options.rounds}")
        measured = {way: await self._measured(*way) for way in WAYS}
        alone = await asyncio.to_thread(self._limit.alone) if self._limit else 0.0
        return _Round(measured, alone)

    async def _measured(self, body: str, connections: int) -> Measured:
        """Measure the limit, then run, and count what the service's processes use for it."""
        limit = None
        if self._limit:
            limit = await asyncio.to_thread(self._limit.rate, "single", self._options.seconds)
        if self._pid is None:
            return Measured(await self._run(body, connections), {}, limit)
        images = scrape.images(await scrape.scrape(self._client))
        before = process_usage.by_process(self._pid)
        run = await self._run(body, connections)
        after = process_usage.by_process(self._pid)
        images = scrape.images(await scrape.scrape(self._client)) - images
        return Measured(run, process_usage.per_image(before, after, max(images, 1)), limit)

    async def _stages(self, connections: int) -> dict[str, float]:
        """Return mean seconds of a request by stage; `way` is outside of the service."""
        self._say(f"stages at {connections} connections")
        count = _STAGED * connections
        before = await scrape.scrape(self._client)
        latencies = await load.fixed_count(
            self._client, self._requests["form"], count, connections=connections
        )
        stages = scrape.stages(before, await scrape.scrape(self._client))
        return {**stages, "way": mean(latencies) - sum(stages.values())}

    async def _views(self, limit: Limit) -> dict[str, float]:
        """Return the cost of an image by view plan, relative to `single`, without a server."""
        costs = {}
        for plan in VIEWS:
            self._say(f"views {plan}")
            seconds = self._options.seconds * 2
            single = await asyncio.to_thread(limit.rate, "single", self._options.seconds)
            several = await asyncio.to_thread(limit.rate, plan, seconds)
            costs[plan] = single.images / several.images
        return costs

    async def _sustained(self, alone: Spread | None) -> Sustained:
        """Search the largest rate of random arrivals that meets the objective."""
        objective = self._options.slo or _SLO_SECONDS * (alone.median / _SLO_ALONE if alone else 1)
        low, high, p99 = 0.0, (await self._checked_run(BUSY)).rate, 0.0
        for _ in range(_SEARCHES):
            rate = (low + high) / 2
            self._say(f"random arrivals, {rate:.0f} a second")
            run = await self._open_loop(rate)
            latency = quantile(run.accepted, 0.99)
            if latency <= objective and not run.refused:
                low, p99 = rate, latency
            else:
                high = rate
        return Sustained(objective, low, p99)

    async def _open_loop(self, rate: float) -> Run:
        seconds = self._options.seconds
        return await load.open_loop(
            self._client, self._requests["dated"], rate=rate, seconds=seconds
        )

    async def _level(self, share: float) -> Level:
        self._say(f"random arrivals at {share:g} x the maximum")
        most = (await self._checked_run(BUSY)).rate
        run = await self._open_loop(share * most)
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
        """Measure memory after a tenth of the requests and after all."""
        tenth = self._options.requests // 10
        nbytes = []
        for count in (tenth, self._options.requests - tenth):
            self._say(f"{count} requests")
            await load.fixed_count(self._client, self._requests["form"], count, connections=BUSY)
            nbytes.append(scrape.memory(await scrape.scrape(self._client)))
        return Memory((tenth, self._options.requests), (nbytes[0], nbytes[1]))


@dataclass(frozen=True, slots=True)
class _Round:
    measured: dict[tuple[str, int], Measured]
    alone: float

    @property
    def limit(self) -> float:
        """The limit, in images a second."""
        return median(one.limit.images for one in self.measured.values() if one.limit)


def _closed(rounds: Sequence[_Round]) -> list[Closed]:
    return [Closed.of(*way, [round_.measured[way] for round_ in rounds]) for way in WAYS]


def _lone(rounds: Sequence[_Round]) -> Lone:
    seconds = [quantile(round_.measured["form", 1].run.accepted, 0.5) for round_ in rounds]
    alone = [round_.alone for round_ in rounds]
    ratios = [served / limit for served, limit in zip(seconds, alone, strict=True)]
    return Lone(Spread.of(seconds), Spread.of(alone), Spread.of(ratios))
