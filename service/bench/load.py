"""Load on a service: so many callers who wait for each answer, or arrivals who wait for nobody.

Closed loop: each of N connections sends its next request when it has its answer. Open loop:
requests are due at random moments (a Poisson process), and a latency counts from when a request
was *due*, so that a service which falls behind cannot hide it (coordinated omission).
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.bench.client import Client

OK = 200
WARM_UP = 0.2  # of a run is not counted
_MOST_IN_FLIGHT = 900  # requests; connections are files, and a process may open 1024 or so


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer: its status, 0 for none, and how long it took."""

    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """The answers of a time."""

    seconds: float
    samples: tuple[Sample, ...]

    @property
    def accepted(self) -> list[float]:
        """Latencies of the requests that were answered as they wished, in seconds."""
        return [sample.seconds for sample in self.samples if sample.status == OK]

    @property
    def refused(self) -> list[float]:
        """Latencies of all others, in seconds."""
        return [sample.seconds for sample in self.samples if sample.status != OK]

    @property
    def rate(self) -> float:
        """Accepted answers a second."""
        return len(self.accepted) / self.seconds

    def within(self, seconds: float) -> float:
        """Give the goodput: accepted answers a second that came within so many seconds."""
        return sum(latency <= seconds for latency in self.accepted) / self.seconds


def quantile(latencies: Sequence[float], share: float) -> float:
    """Give the latency that a share of all is not above, in seconds; NaN if there are none."""
    return float(np.quantile(latencies, share)) if latencies else float("nan")


async def closed(
    client: Client, requests: Sequence[bytes], *, connections: int, seconds: float
) -> Run:
    """Ask over N connections, each again as soon as it is answered."""
    turn = itertools.cycle(requests)
    started = time.perf_counter()
    counted, end = started + WARM_UP * seconds, started + seconds
    samples: list[Sample] = []

    async def ask_on() -> None:
        while (sent := time.perf_counter()) < end:
            reply = await client.ask(next(turn))
            now = time.perf_counter()
            if counted <= now < end:
                samples.append(Sample(reply.status, now - sent))
            if not reply.status:
                await asyncio.sleep(0.01)  # no use in hammering on a closed door

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(ask_on())
    return Run(end - counted, tuple(samples))


async def so_many(
    client: Client, requests: Sequence[bytes], count: int, *, connections: int
) -> list[float]:
    """Ask so many times over N connections; gives every latency, in seconds."""
    turn = itertools.islice(itertools.cycle(requests), count)
    latencies = []

    async def ask_on() -> None:
        for request in turn:
            sent = time.perf_counter()
            await client.ask(request)
            latencies.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(ask_on())
    return latencies


async def paced(
    client: Client, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> Run:
    """Ask at a mean rate, at random moments, whatever becomes of it."""
    turn = itertools.cycle(requests)
    started = time.perf_counter()
    counted = started + WARM_UP * seconds
    free = asyncio.Semaphore(_MOST_IN_FLIGHT)
    samples: list[Sample] = []

    async def ask_once(due: float) -> None:
        async with free:
            reply = await client.ask(next(turn))
        if due >= counted:
            samples.append(Sample(reply.status, time.perf_counter() - due))

    async with asyncio.TaskGroup() as tasks:
        for after in arrivals(rate, seconds, seed):
            await asyncio.sleep(started + after - time.perf_counter())
            tasks.create_task(ask_once(started + after))
    return Run(seconds * (1 - WARM_UP), tuple(samples))


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Give the moments of a Poisson process, in seconds from its start."""
    chance = random.Random(seed)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)
