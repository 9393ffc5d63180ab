"""Load generators: closed and open loop.

Closed loop: each of N connections sends its next request after the response. Open loop: requests
are due at random moments (a Poisson process), and a latency counts from when a request was *due*,
so that a service which falls behind cannot hide it (coordinated omission).
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
    """A response: its status, 0 for none, and its latency."""

    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """The responses of a period."""

    seconds: float
    samples: tuple[Sample, ...]

    @property
    def accepted(self) -> list[float]:
        """Latencies of the responses with status 200, in seconds."""
        return [sample.seconds for sample in self.samples if sample.status == OK]

    @property
    def refused(self) -> list[float]:
        """Latencies of all others, in seconds."""
        return [sample.seconds for sample in self.samples if sample.status != OK]

    @property
    def rate(self) -> float:
        """Accepted responses a second."""
        return len(self.accepted) / self.seconds

    def within(self, seconds: float) -> float:
        """Return the goodput: accepted responses a second with at most this latency."""
        return sum(latency <= seconds for latency in self.accepted) / self.seconds


def quantile(latencies: Sequence[float], share: float) -> float:
    """Return a quantile of latencies, in seconds; NaN without any."""
    return float(np.quantile(latencies, share)) if latencies else float("nan")


async def closed_loop(
    client: Client, requests: Sequence[bytes], *, connections: int, seconds: float
) -> Run:
    """Send requests over N connections, each again after its response."""
    turn = itertools.cycle(requests)
    started = time.perf_counter()
    counted, end = started + WARM_UP * seconds, started + seconds
    samples: list[Sample] = []

    async def connection() -> None:
        while (sent := time.perf_counter()) < end:
            reply = await client.ask(next(turn))
            now = time.perf_counter()
            if counted <= now < end:
                samples.append(Sample(reply.status, now - sent))
            if not reply.status:
                await asyncio.sleep(0.01)  # do not busy-loop on refused connections

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(connection())
    return Run(end - counted, tuple(samples))


async def fixed_count(
    client: Client, requests: Sequence[bytes], count: int, *, connections: int
) -> list[float]:
    """Send `count` requests over N connections; returns every latency, in seconds."""
    turn = itertools.islice(itertools.cycle(requests), count)
    latencies = []

    async def connection() -> None:
        for request in turn:
            sent = time.perf_counter()
            await client.ask(request)
            latencies.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(connection())
    return latencies


async def open_loop(
    client: Client, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> Run:
    """Send requests at a mean rate, at random moments, whether or not responses come."""
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
    """Yield the moments of a Poisson process, in seconds from its start."""
    rng = random.Random(seed)
    moment = rng.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += rng.expovariate(rate)
