"""What becomes of random arrivals at one replica: event by event, without a clock.

A discrete-event simulation of the stages that a request goes through: HTTP, which is one event
loop; decoding threads; the queue and the lanes, as `service.scheduling.batcher` has them. Whom to
refuse, who is too late and what runs next is asked of `service.scheduling.admission` and
`service.scheduling.policy`, as the batcher does.
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
from service.scheduling.admission import Decoders, QueueLoad, admit
from service.scheduling.cost_model import Key
from service.scheduling.policy import BatchPlan, QueuedJob, RunningBatch

_WARM_UP = 0.1  # of the arrivals are not counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the arrivals that were counted, and how busy each stage was."""

    latencies: tuple[float, ...]  # seconds, of those that were answered in time
    refused: int
    late: int  # accepted, and not answered by the deadline
    utilisation: Stages  # the share of its time that each is busy

    @property
    def arrived(self) -> int:
        """How many came."""
        return len(self.latencies) + self.refused + self.late

    def quantile(self, share: float) -> float:
        """Give the seconds that a share of the answers took at most; NaN if there are none."""
        return float(np.quantile(self.latencies, share)) if self.latencies else math.nan

    def within(self, seconds: float) -> float:
        """Give the share of all arrivals that were answered within so many seconds."""
        return sum(latency <= seconds for latency in self.latencies) / self.arrived


def poisson(rate: float, count: int, seed: int = 0) -> Iterator[float]:
    """Give the first moments, in seconds, of a Poisson process of so many a second.

    Split at random over replicas, such a process is one at each of them (Poisson thinning).
    """
    chance, at = random.Random(seed), 0.0
    for _ in range(count):
        at += chance.expovariate(rate)
        yield at


def simulate(
    replica: Replica, spec: JobSpec, arrivals: Iterable[float], *, deadline: float
) -> Outcome:
    """Let requests come at these moments, each to be answered in `deadline` seconds."""
    return _Simulation(replica, spec, deadline).play([*arrivals])


@dataclass(eq=False, slots=True)
class _Request:
    arrived: float
    undone: int  # rows
    counts: bool  # among the outcomes
    deadline: float = math.inf


@dataclass(eq=False, slots=True)
class _Job:
    """A request's rows of one key."""

    request: _Request
    waiting: QueuedJob
    order: tuple[float, int]  # deadline, then first come


class _Simulation:
    """A replica at work."""

    def __init__(self, replica: Replica, spec: JobSpec, deadline: float) -> None:
        self._replica, self._demand, self._deadline = replica, spec, deadline
        self._devices = replica.devices
        self._costs = replica.costs
        self._agenda = EventQueue(self._at_work)
        self._at_http: deque[Callable[[], None]] = deque()  # what is next, for who is there
        self._undecoded: deque[_Request] = deque()
        self._decoding = 0
        self._decoders = Decoders(replica.decoders)
        self._queue: list[_Job] = []  # by order
        self._serial = 0
        self._rows: Counter[Key] = Counter()  # admitted and not yet taken
        self._idle = deque(range(len(replica.executors)))  # lanes, longest first
        self._running: dict[int, RunningBatch] = {}  # by lane, in the order in which they began
        self._turns: dict[int, deque[Task]] = {}  # by device, which is at the first of them
        self._freed: dict[int, float] = {}  # by device: when it last finished a batch
        self._latencies: list[float] = []
        self._refused = self._late = 0

    def play(self, arrivals: list[float]) -> Outcome:
        """Let them come, and go on until all is done."""
        uncounted = int(_WARM_UP * len(arrivals))
        rows = sum(self._demand.values())
        for number, at in enumerate(arrivals):
            self._agenda.until(at)
            request = _Request(at, rows, counts=number >= uncounted)
            self._pass_http(partial(self._admit, request))
        self._agenda.until(math.inf)
        return Outcome(tuple(self._latencies), self._refused, self._late, self._utilisation())

    def _at_work(self) -> Stages:
        return Stages(len(self._turns), self._decoding, int(bool(self._at_http)))

    def _utilisation(self) -> Stages:
        time, most = self._agenda.now, self._replica.most
        spent = zip(self._agenda.spent, most, strict=True)
        return Stages(*(seconds / time / number for seconds, number in spent))

    # HTTP: an event loop, by which each request goes twice; and whom it refuses in between.

    def _pass_http(self, then: Callable[[], None]) -> None:
        self._at_http.append(then)
        if len(self._at_http) == 1:
            self._agenda.begin(Task(self._visit_seconds, self._passed_http))

    def _visit_seconds(self, busy: Stages) -> float:
        return self._replica.http_seconds(busy) / 2

    def _passed_http(self) -> None:
        then = self._at_http.popleft()
        if self._at_http:
            self._agenda.begin(Task(self._visit_seconds, self._passed_http))
        then()

    def _admit(self, request: _Request) -> None:
        running = policy.work_left(self._running.values(), self._freed, self._agenda.now)
        decode_wait = self._decoders.decode_wait(len(self._undecoded) + self._decoding + 1)
        load = QueueLoad(running, self._rows, len(self._devices), decode_wait=decode_wait)
        if not admit(load, self._demand, self._costs, self._deadline).admitted:
            self._refused += request.counts
            return
        request.deadline = self._agenda.now + self._deadline
        self._rows.update(self._demand)
        self._undecoded.append(request)
        self._decode()

    # Decoding.

    def _decode(self) -> None:
        if self._undecoded and self._decoding < self._replica.decoders:
            self._decoding += 1
            decoded = partial(self._decoded, self._undecoded.popleft(), self._agenda.now)
            self._agenda.begin(Task(self._replica.decode_seconds, decoded))

    def _decoded(self, request: _Request, begun: float) -> None:
        self._decoding -= 1
        self._decoders = self._decoders.observed(self._agenda.now - begun)
        self._decode()
        for key, rows in self._demand.items():
            self._serial += 1
            large = rows > self._costs.largest(key)
            waiting = QueuedJob(key, rows, request.deadline, large)
            job = _Job(request, waiting, (request.deadline, self._serial))
            insort(self._queue, job, key=lambda job: job.order)
        self._look()

    # Batches, as the batcher's lanes take them.

    def _look(self) -> None:
        """Let the lanes that wait serve for as long as it is the turn of one."""
        while (number := next(filter(self._is_turn_of, self._idle), None)) is not None:
            self._idle.remove(number)
            self._serve(number)

    def _serve(self, number: int) -> None:
        """Let a lane take what is formed for it, or wait."""
        while self._is_turn_of(number):
            if self._take(number):
                return
        self._idle.append(number)

    def _is_turn_of(self, number: int) -> bool:
        busy = {run.device for run in self._running.values()}
        turn = policy.is_turn(self._replica.executors[number], busy, self._devices)
        return bool(self._queue) and turn

    def _take(self, number: int) -> bool:
        """Form a batch for a lane and begin with it, if there is anybody to be served in time."""
        busy = {run.device for run in self._running.values()}
        others = self._devices - busy - {self._replica.executors[number]}
        decision = policy.form(
            [job.waiting for job in self._queue],
            self._costs,
            self._agenda.now,
            free=1 + len(others),
            devices=len(self._devices),
            running=policy.work_left(self._running.values(), self._freed, self._agenda.now),
        )
        late = [self._queue[at] for at in decision.late]
        if decision.run:
            self._run(number, decision.run)
        for job in late:
            self._drop(job.request)
        return decision.run is not None

    def _drop(self, request: _Request) -> None:
        """Give a request up, with all its rows that wait."""
        self._late += request.counts
        request.counts = False
        for job in [job for job in self._queue if job.request is request]:
            self._rows[job.waiting.key] -= job.waiting.left
            self._queue.remove(job)

    def _run(self, number: int, formation: BatchPlan) -> None:
        device, key, size = self._replica.executors[number], formation.key, formation.size
        taken = [(self._queue[at], rows) for at, rows in formation.takes]
        for job, rows in taken:
            job.waiting = replace(job.waiting, left=job.waiting.left - rows)
            self._rows[key] -= rows
            if not job.waiting.left:
                self._queue.remove(job)
        expected = self._costs.seconds(key, size)
        self._running[number] = RunningBatch(device, self._agenda.now, expected)
        parts = [(job.request, rows) for job, rows in taken]
        seconds = partial(self._replica.batch_seconds, key, size)
        task = Task(seconds, partial(self._ran, number, key, size, parts))
        turns = self._turns.setdefault(device, deque())
        turns.append(task)
        if len(turns) == 1:
            self._agenda.begin(task)

    def _ran(self, number: int, key: Key, size: int, parts: Iterable[tuple[_Request, int]]) -> None:
        for request, rows in parts:
            self._give(request, rows)
        run = self._running.pop(number)
        seconds = self._agenda.now - run.since(self._freed)
        self._costs = self._costs.observed(key, size, seconds)
        self._freed[run.device] = self._agenda.now
        turns = self._turns[run.device]
        turns.popleft()
        if turns:
            self._agenda.begin(turns[0])
        else:
            del self._turns[run.device]
        self._serve(number)
        self._look()

    def _give(self, request: _Request, rows: int) -> None:
        request.undone -= rows
        if not request.undone:
            self._pass_http(partial(self._answer, request))

    def _answer(self, request: _Request) -> None:
        if self._agenda.now > request.deadline:
            self._late += request.counts
        elif request.counts:
            self._latencies.append(self._agenda.now - request.arrived)
