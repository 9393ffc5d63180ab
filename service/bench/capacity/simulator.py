"""A simulation of random arrivals at one replica: the service's own batcher on a virtual clock.

Admission and batches are those of `service.scheduling.batcher`. HTTP, which is one event loop,
decoding threads and devices are locks; what holds one takes as long as the replica's model says.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from service.bench import load
from service.bench.capacity import virtual_time
from service.bench.capacity.replica_model import Replica, Rows, Stages
from service.errors import DeadlineExceeded, ServiceError
from service.scheduling.admission import Decoders
from service.scheduling.batcher import Batcher
from service.scheduling.reservation import Reservation
from service.scheduling.types import Batch, Executor, JobSpec

_WARM_UP = 0.1  # of the arrivals are not counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcomes of the counted arrivals, and the utilisation of each stage."""

    latencies: tuple[float, ...]  # seconds, of responses within the deadline
    refused: int
    late: int  # accepted, but without a response by the deadline
    utilisation: Stages  # busy share of each stage's time

    @property
    def arrived(self) -> int:
        """The number of counted arrivals."""
        return len(self.latencies) + self.refused + self.late

    def quantile(self, share: float) -> float:
        """Return a quantile of latencies, in seconds; NaN without any."""
        return load.quantile(self.latencies, share)

    def within(self, seconds: float) -> float:
        """Return the share of all arrivals with at most this latency."""
        return sum(latency <= seconds for latency in self.latencies) / self.arrived


def poisson(rate: float, count: int, seed: int = 0) -> Iterator[float]:
    """Return the first moments, in seconds, of a Poisson process of `rate` a second.

    Split at random over replicas, such a process is one at each of them (Poisson thinning).
    """
    return islice(load.arrivals(rate, math.inf, seed), count)


def simulate(
    replica: Replica, rows: Rows, arrivals: Iterable[float], *, deadline: float
) -> Outcome:
    """Simulate requests that arrive at these moments, each with a deadline in seconds."""

    async def run() -> Outcome:
        return await _Simulation(replica, rows, deadline).run([*arrivals])

    return virtual_time.run(run())


@dataclass(eq=False, slots=True)
class _Counts:
    """What became of requests."""

    latencies: list[float] = field(default_factory=list)  # seconds
    refused: int = 0
    late: int = 0


class _Simulation:
    """A simulated replica; made on the loop whose clock is virtual."""

    def __init__(self, replica: Replica, rows: Rows, deadline: float) -> None:
        self._replica, self._deadline = replica, deadline
        self._clock = asyncio.get_running_loop().time
        self._specs = [JobSpec(key, count, nbytes=0) for key, count in rows.items()]
        self._http = asyncio.Lock()
        self._threads = asyncio.Semaphore(replica.decoders)
        self._devices = {device: asyncio.Lock() for device in replica.devices}
        self._decoders = Decoders(replica.decoders)
        self._undecoded = 0  # requests
        self._busy: Counter[str] = Counter(dict.fromkeys(Stages._fields, 0))  # now, by stage
        self._spent = dict.fromkeys(Stages._fields, 0.0)  # busy seconds, by stage
        self._batcher: Batcher[object, None] = Batcher(
            [Executor(partial(self._compute, device), device) for device in replica.executors],
            replica.costs,
            max_bytes=1,
            report=lambda _: None,
            clock=self._clock,
        )

    async def run(self, arrivals: Sequence[float]) -> Outcome:
        """Run all requests to their end."""
        counted, not_counted = _Counts(), _Counts()
        warm_up = int(_WARM_UP * len(arrivals))
        async with self._batcher, asyncio.TaskGroup() as tasks:
            for number, moment in enumerate(arrivals):
                await asyncio.sleep(moment - self._clock())
                tasks.create_task(self._request(not_counted if number < warm_up else counted))
        return Outcome(tuple(counted.latencies), counted.refused, counted.late, self._utilisation())

    def _utilisation(self) -> Stages:
        spent = zip(Stages(**self._spent), self._replica.most, strict=True)
        return Stages(*(seconds / self._clock() / number for seconds, number in spent))

    async def _request(self, counts: _Counts) -> None:
        arrived = self._clock()
        await self._visit_http()
        deadline = self._clock() + self._deadline
        wait = self._decoders.decode_wait(self._undecoded + 1)
        is_late = False
        with ExitStack() as stack:
            try:
                reserved = self._batcher.reserve(self._specs, deadline, decode_wait=wait)
                reservations = stack.enter_context(reserved)
            except ServiceError:
                counts.refused += 1
                return
            try:
                async with asyncio.timeout_at(deadline):
                    await self._classify(reservations)
            except* (DeadlineExceeded, TimeoutError):
                is_late = True
        await self._visit_http()
        if is_late:
            counts.late += 1
        else:
            counts.latencies.append(self._clock() - arrived)

    async def _classify(self, reservations: Sequence[Reservation[object, None]]) -> None:
        self._undecoded += 1
        started = self._clock()
        try:
            await self._hold(self._threads, "decoding", self._replica.decode_seconds)
        finally:
            self._undecoded -= 1
        self._decoders = self._decoders.observed(self._clock() - started)
        async with asyncio.TaskGroup() as tasks:
            for reservation in reservations:
                tasks.create_task(self._batcher.submit(reservation, self))

    async def _compute(self, device: int, batch: Batch[object]) -> Sequence[None]:
        seconds = partial(self._replica.batch_seconds, batch.key, batch.size)
        await self._hold(self._devices[device], "computing", seconds)
        return [None] * len(batch.slices)

    async def _visit_http(self) -> None:
        """Use the event loop, which each request does twice, for half of its time."""
        await self._hold(self._http, "http", lambda busy: self._replica.http_seconds(busy) / 2)

    async def _hold(
        self,
        turn: AbstractAsyncContextManager[object],
        stage: str,
        seconds: Callable[[Stages], float],
    ) -> None:
        """Hold a lock for the time that the work takes beside what is busy when it begins."""
        async with turn:
            self._busy[stage] += 1
            try:
                took = seconds(Stages(**self._busy))
                self._spent[stage] += took
                await asyncio.sleep(took)
            finally:
                self._busy[stage] -= 1
