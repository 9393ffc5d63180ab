"""A discrete-event simulation of random arrivals at one replica.

It simulates the stages that a request goes through: HTTP, which is one event loop; decoding
threads; the queue and the executors, as `service.scheduling.batcher` has them. Which requests are
refused, which jobs are too late and what runs next is decided by `service.scheduling.admission` and
`service.scheduling.policy`, as in the batcher.
"""

import math
import random
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from service.bench.capacity.event_queue import EventQueue, Task
from service.bench.capacity.replica_model import JobSpec, Replica, Stages
from service.scheduling import policy
from service.scheduling.admission import Decoders, QueueLoad, evaluate
from service.scheduling.cost_model import Key
from service.scheduling.policy import BatchPlan, QueuedJob, RunningBatch

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
        return float(np.quantile(self.latencies, share)) if self.latencies else math.nan

    def within(self, seconds: float) -> float:
        """Return the share of all arrivals with at most this latency."""
        return sum(latency <= seconds for latency in self.latencies) / self.arrived


def poisson(rate: float, count: int, seed: int = 0) -> Iterator[float]:
    """Yield the first moments, in seconds, of a Poisson process of `rate` a second.

    Split at random over replicas, such a process is one at each of them (Poisson thinning).
    """
    rng, moment = random.Random(seed), 0.0
    for _ in range(count):
        moment += rng.expovariate(rate)
        yield moment


def simulate(
    replica: Replica, spec: JobSpec, arrivals: Iterable[float], *, deadline: float
) -> Outcome:
    """Simulate requests that arrive at these moments, each with a deadline in seconds."""
    return _Simulation(replica, spec, deadline).run([*arrivals])


@dataclass(eq=False, slots=True)
class _Request:
    arrived: float
    rows_left: int
    is_counted: bool
    deadline: float = math.inf


@dataclass(eq=False, slots=True)
class _Job:
    """A request's rows of one key."""

    request: _Request
    queued: QueuedJob
    order: tuple[float, int]  # deadline, then arrival


class _Simulation:
    """The state of a simulated replica."""

    def __init__(self, replica: Replica, spec: JobSpec, deadline: float) -> None:
        self._replica, self._spec, self._deadline = replica, spec, deadline
        self._devices = replica.devices
        self._costs = replica.costs
        self._events = EventQueue(self._busy)
        self._http: deque[Callable[[], None]] = deque()  # what follows each visit
        self._undecoded: deque[_Request] = deque()
        self._decoding = 0
        self._decoders = Decoders(replica.decoders)
        self._queue: list[_Job] = []  # by order
        self._serial = 0
        self._rows: Counter[Key] = Counter()  # admitted and not yet in a batch
        self._idle = deque(range(len(replica.executors)))  # executors, longest idle first
        self._running: dict[int, RunningBatch] = {}  # by executor, in the order of their start
        self._device_queues: dict[int, deque[Task]] = {}  # by device, which runs the first
        self._freed: dict[int, float] = {}  # by device: end of its last batch
        self._latencies: list[float] = []
        self._refused = self._late = 0

    def run(self, arrivals: list[float]) -> Outcome:
        """Run all requests to their end."""
        uncounted = int(_WARM_UP * len(arrivals))
        rows = sum(self._spec.values())
        for number, moment in enumerate(arrivals):
            self._events.advance(moment)
            request = _Request(moment, rows, is_counted=number >= uncounted)
            self._visit_http(partial(self._admit, request))
        self._events.advance(math.inf)
        return Outcome(tuple(self._latencies), self._refused, self._late, self._utilisation())

    def _busy(self) -> Stages:
        return Stages(len(self._device_queues), self._decoding, int(bool(self._http)))

    def _utilisation(self) -> Stages:
        time, most = self._events.now, self._replica.most
        spent = zip(self._events.spent, most, strict=True)
        return Stages(*(seconds / time / number for seconds, number in spent))

    # HTTP: an event loop, which each request visits twice; and admission.

    def _visit_http(self, then: Callable[[], None]) -> None:
        self._http.append(then)
        if len(self._http) == 1:
            self._events.begin(Task(self._visit_seconds, self._visited_http))

    def _visit_seconds(self, busy: Stages) -> float:
        return self._replica.http_seconds(busy) / 2

    def _visited_http(self) -> None:
        then = self._http.popleft()
        if self._http:
            self._events.begin(Task(self._visit_seconds, self._visited_http))
        then()

    def _admit(self, request: _Request) -> None:
        running = policy.work_left(self._running.values(), self._freed, self._events.now)
        decode_wait = self._decoders.decode_wait(len(self._undecoded) + self._decoding + 1)
        load = QueueLoad(running, self._rows, len(self._devices), decode_wait=decode_wait)
        if not evaluate(load, self._spec, self._costs, self._deadline).admitted:
            self._refused += request.is_counted
            return
        request.deadline = self._events.now + self._deadline
        self._rows.update(self._spec)
        self._undecoded.append(request)
        self._decode()

    # Decoding.

    def _decode(self) -> None:
        if self._undecoded and self._decoding < self._replica.decoders:
            self._decoding += 1
            decoded = partial(self._decoded, self._undecoded.popleft(), self._events.now)
            self._events.begin(Task(self._replica.decode_seconds, decoded))

    def _decoded(self, request: _Request, begun: float) -> None:
        self._decoding -= 1
        self._decoders = self._decoders.observed(self._events.now - begun)
        self._decode()
        for key, rows in self._spec.items():
            self._serial += 1
            large = rows > self._costs.largest(key)
            queued = QueuedJob(key, rows, request.deadline, large)
            job = _Job(request, queued, (request.deadline, self._serial))
            insort(self._queue, job, key=lambda job: job.order)
        self._wake()

    # Batches, as the batcher's executors take them.

    def _wake(self) -> None:
        """Let idle executors serve for as long as it is the turn of one."""
        while (number := next(filter(self._is_turn_of, self._idle), None)) is not None:
            self._idle.remove(number)
            self._serve(number)

    def _serve(self, number: int) -> None:
        """Let an executor take a batch, or become idle."""
        while self._is_turn_of(number):
            if self._take(number):
                return
        self._idle.append(number)

    def _is_turn_of(self, number: int) -> bool:
        busy = {run.device for run in self._running.values()}
        turn = policy.is_turn(self._replica.executors[number], busy, self._devices)
        return bool(self._queue) and turn

    def _take(self, number: int) -> bool:
        """Form a batch for an executor and start it, if a job can be served in time."""
        busy = {run.device for run in self._running.values()}
        others = self._devices - busy - {self._replica.executors[number]}
        decision = policy.form(
            [job.queued for job in self._queue],
            self._costs,
            self._events.now,
            free=1 + len(others),
            devices=len(self._devices),
            running=policy.work_left(self._running.values(), self._freed, self._events.now),
        )
        late = [self._queue[index] for index in decision.late]
        if decision.run:
            self._start(number, decision.run)
        for job in late:
            self._drop(job.request)
        return decision.run is not None

    def _drop(self, request: _Request) -> None:
        """Drop a late request with its queued rows."""
        self._late += request.is_counted
        request.is_counted = False
        for job in [job for job in self._queue if job.request is request]:
            self._rows[job.queued.key] -= job.queued.left
            self._queue.remove(job)

    def _start(self, number: int, plan: BatchPlan) -> None:
        device, key, size = self._replica.executors[number], plan.key, plan.size
        taken = [(self._queue[index], rows) for index, rows in plan.takes]
        for job, rows in taken:
            job.queued = replace(job.queued, left=job.queued.left - rows)
            self._rows[key] -= rows
            if not job.queued.left:
                self._queue.remove(job)
        expected = self._costs.seconds(key, size)
        self._running[number] = RunningBatch(device, self._events.now, expected)
        parts = [(job.request, rows) for job, rows in taken]
        seconds = partial(self._replica.batch_seconds, key, size)
        task = Task(seconds, partial(self._ran, number, key, size, parts))
        queue = self._device_queues.setdefault(device, deque())
        queue.append(task)
        if len(queue) == 1:
            self._events.begin(task)

    def _ran(self, number: int, key: Key, size: int, parts: Iterable[tuple[_Request, int]]) -> None:
        for request, rows in parts:
            self._finish(request, rows)
        run = self._running.pop(number)
        seconds = self._events.now - run.since(self._freed)
        self._costs = self._costs.observed(key, size, seconds)
        self._freed[run.device] = self._events.now
        queue = self._device_queues[run.device]
        queue.popleft()
        if queue:
            self._events.begin(queue[0])
        else:
            del self._device_queues[run.device]
        self._serve(number)
        self._wake()

    def _finish(self, request: _Request, rows: int) -> None:
        request.rows_left -= rows
        if not request.rows_left:
            self._visit_http(partial(self._answer, request))

    def _answer(self, request: _Request) -> None:
        if self._events.now > request.deadline:
            self._late += request.is_counted
        elif request.is_counted:
            self._latencies.append(self._events.now - request.arrived)
