"""The batcher: rows wait here, and only here.

Jobs bring rows; whenever a lane is free it takes the batch that `service.scheduling.policy` forms
from what has arrived by then, of what `service.scheduling.admission` let in. The batcher knows no
torch, no HTTP and no pictures.

All state lives on the event loop; there is no lock and no timer. Whatever a lane or the policy
raises is told to the callers concerned and never ends a loop.
"""

import asyncio
import contextlib
import logging
import math
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Self

from service.errors import (
    DeadlineExceeded,
    InferenceFailed,
    OutOfMemory,
    Overloaded,
    ServiceError,
    TooLarge,
)
from service.scheduling import policy
from service.scheduling.admission import Admission, Doubt, Invitation, Load, Room, admit
from service.scheduling.cost_model import Costs, Key
from service.scheduling.policy import Run, Shares, Waiting
from service.scheduling.types import (
    Backlog,
    Batch,
    BatchReport,
    Demand,
    DropReport,
    Lane,
    Outcome,
    P,
    R,
    Report,
    Slice,
    Wait,
)
from service.settings import BULK_SHARE

logger = logging.getLogger(__name__)

_BULK_SECONDS = 10.0  # for which bulk is expected again

_NO_INVITATIONS = {False: Invitation(), True: Invitation()}

STOPPING = "the service is stopping"


@dataclass(eq=False, slots=True)
class Seat(Generic[P, R]):
    """A job's place: reserved, then queued with its payload, then served in slices.

    For its holder it is a token to hand to `Batcher.submit`; only the batcher writes to it.
    """

    demand: Demand
    order: tuple[float, int]  # deadline, then first come
    waiting: Waiting
    long: bool  # as `service.scheduling.admission` has it
    payload: P | None = None
    future: asyncio.Future[None] | None = None
    submitted: float = 0.0
    started: float = 0.0
    batch_rows: int = 0
    undone: int = 0  # rows whose result is not in
    parts: list[tuple[int, R]] = field(default_factory=list)  # (first row, result)


class Batcher(Generic[P, R]):
    """Forms batches for the lanes for as long as it is entered."""

    def __init__(
        self,
        lanes: Sequence[Lane[P, R]],
        costs: Costs,
        *,
        max_bytes: int,
        report: Report,
        bulk_share: float = BULK_SHARE,
    ) -> None:
        self._lanes = lanes
        self._devices = frozenset(lane.device for lane in lanes)
        self._costs = costs
        self._max_bytes = max_bytes
        self._report = report
        self._queue: list[Seat[P, R]] = []  # seats with a payload and rows to take, by order
        self._seats: set[Seat[P, R]] = set()  # all that are reserved and not released
        self._rows: Counter[Key] = Counter()  # of those, the interactive rows not yet taken
        self._long: Counter[Key] = Counter()  # of these, the rows of long jobs
        self._bulk: Counter[Key] = Counter()  # of those seats, the bulk rows not yet taken
        self._shares = Shares(bulk_share)
        self._bulk_asked = -math.inf  # when it last was
        self._nbytes: Counter[bool] = Counter()  # of the seats' payloads, by whether they are bulk
        self._room = Room()
        self._doubt = Doubt()
        self._invitations = _NO_INVITATIONS  # by whether it is to bulk
        self._serial = 0
        self._changed = asyncio.Event()  # something came or went, or a lane is free
        self._running: dict[int, Run] = {}  # by lane, in the order in which they began
        self._freed: dict[int, float] = {}  # by device: when it last finished a batch
        self._failures = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number, lane in enumerate(self._lanes):
            self._tasks.append(asyncio.create_task(self._serve(number, lane)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for seat in self._seats:
            _fail(seat, InferenceFailed(STOPPING))

    # What a caller does: reserve, then submit.

    @contextlib.contextmanager
    def reserve(
        self,
        demands: Sequence[Demand],
        deadline: float,
        *,
        lead: float = 0.0,
        bulk: bool = False,
    ) -> Iterator[list[Seat[P, R]]]:
        """Hold a seat for each demand, all to be done by `deadline` (`time.monotonic` seconds).

        Their payloads are expected to wait for `lead` seconds before they are made. Those of
        `bulk` let others pass. Raises at once `Overloaded` when there is no room or no time for
        them now, and `DeadlineExceeded` when idle devices could not do them in time either.
        Leaving releases the seats.
        """
        admission = self.check(demands, deadline - time.monotonic(), lead=lead, bulk=bulk)
        if not bulk:
            self._room = self._room.asked(admission.alone, time.monotonic())
        long = not bulk and self._room.needs(admission.alone, time.monotonic())
        firm = not (bulk or self._is_shared(time.monotonic()))
        seats = [
            self._seat(demand, deadline, long=long, firm=firm, bulk=bulk) for demand in demands
        ]
        try:
            yield seats
        finally:
            if not (admission.idle or bulk):  # which has mostly been promised less than it gets
                self._learn(seats, admission.promised - lead)
            for seat in seats:
                self.release(seat)

    def check(
        self, demands: Sequence[Demand], seconds: float, *, lead: float = 0.0, bulk: bool = False
    ) -> Admission:
        """Raise what `reserve` would, for jobs that must be done in so many seconds."""
        now = time.monotonic()
        load, admission = self._admission(demands, seconds, lead, now, bulk=bulk)
        if seconds <= 0:
            raise DeadlineExceeded("the deadline passed while the request was being sent")
        if not admission.possible:
            where = "as bulk, beside others" if bulk else "when nothing else runs"
            raise DeadlineExceeded(
                f"this takes about {admission.promised:.2f} s {where}, more than the "
                f"{seconds:.2f} s it has; ask for fewer views or pictures, or for more time"
            )
        if not admission.admitted:
            invitation = self._invitations[bulk].another(admission, now, load.doubt)
            self._invitations = {**self._invitations, bulk: invitation}
            raise Overloaded(
                f"{self._rows.total() + self._bulk.total()} rows are queued: this would be done in "
                f"{admission.done_in:.2f} s, and the deadline is {seconds:.2f} s",
                retry_after=invitation.at - now,
            )
        nbytes = sum(demand.nbytes for demand in demands)
        most, used = self._most_bytes(bulk=bulk), self._used_bytes(bulk=bulk)
        if nbytes > most:
            raise TooLarge(
                f"the views asked for take {nbytes} bytes, and the limit is {most}; "
                "ask for fewer views or pictures"
            )
        if used + nbytes > most:
            raise Overloaded(
                f"the pictures that wait fill their {most} bytes of memory",
                retry_after=load.seconds(self._costs),
            )
        if admission.idle:  # whoever was invited may come
            self._invitations = _NO_INVITATIONS
        return admission

    def outlook(
        self, demands: Sequence[Demand], *, lead: float = 0.0, bulk: bool = False
    ) -> tuple[float, float]:
        """Predict what would be if such jobs were admitted now.

        Gives the seconds in which they would be done, and the share of the memory for payloads
        that would be filled.
        """
        load, admission = self._admission(demands, math.inf, lead, time.monotonic(), bulk=bulk)
        nbytes = self._used_bytes(bulk=bulk) + sum(demand.nbytes for demand in demands)
        return load.doubt * admission.promised, nbytes / self._most_bytes(bulk=bulk)

    def _most_bytes(self, *, bulk: bool) -> int:
        return self._max_bytes // 2 if bulk else self._max_bytes  # half is left to the others

    def _used_bytes(self, *, bulk: bool) -> int:
        """Give what counts against that: bulk's own, or all."""
        return self._nbytes[True] if bulk else self._nbytes.total()

    def _admission(
        self, demands: Sequence[Demand], seconds: float, lead: float, now: float, *, bulk: bool
    ) -> tuple[Load, Admission]:
        rows: Counter[Key] = Counter()
        for demand in demands:
            rows[demand.key] += demand.rows
        load = replace(
            self._load(),
            lead=lead,
            room=self._room.left(now),
            doubt=self._doubt.factor,
            shared=self._is_shared(now),
        )
        return load, admit(load, rows, self._costs, seconds, bulk=bulk)

    async def submit(self, seat: Seat[P, R], payload: P) -> Outcome[R]:
        """Queue a payload on its seat and wait for the results of all its rows.

        Raises `DeadlineExceeded` or `InferenceFailed`. A caller that is cancelled while its
        rows wait takes them along: they cost no forward.
        """
        if not self.alive:
            raise InferenceFailed(STOPPING)
        seat.payload = payload
        seat.submitted = time.monotonic()
        if seat.waiting.bulk:
            self._bulk_asked = seat.submitted
        seat.future = asyncio.get_running_loop().create_future()
        insort(self._queue, seat, key=_order)
        self._changed.set()
        try:
            await seat.future
        except asyncio.CancelledError:
            if seat.future.cancelled():  # else it had an outcome, which was reported
                late = time.monotonic() >= seat.waiting.deadline
                self._report(DropReport("late" if late else "cancelled", _where(seat)))
            raise
        finally:
            self.release(seat)
        return Outcome(
            tuple(part for _, part in sorted(seat.parts, key=lambda part: part[0])),
            seat.started - seat.submitted,
            time.monotonic() - seat.started,
            seat.batch_rows,
        )

    def release(self, seat: Seat[P, R]) -> None:
        """Give a seat back, with the rows it has not had served; twice is harmless."""
        if seat in self._seats:
            self._seats.remove(seat)
            self._count(seat, -seat.waiting.left)
            self._nbytes[seat.waiting.bulk] -= seat.demand.nbytes
            self._unqueue(seat)
            self._changed.set()  # what is left may be another lane's turn

    # What a probe or a gauge asks.

    @property
    def alive(self) -> bool:
        """Is every lane's loop turning."""
        return not any(task.done() for task in self._tasks)

    @property
    def failures(self) -> int:
        """How many batches the device has failed on since the last that it did not."""
        return self._failures

    def backlog(self) -> Backlog:
        """Sum up what has been accepted and is not done."""
        now = time.monotonic()
        oldest = min((run.started for run in self._running.values()), default=now)
        seconds = self._load().computing(self._rows, self._costs)
        rows, bulk = self._rows.total(), self._bulk.total()
        return Backlog(rows + bulk, bulk, self._nbytes.total(), seconds, now - oldest)

    # Coming in.

    def _load(self) -> Load:
        seconds = policy.work_left(self._running.values(), self._freed, time.monotonic())
        devices = len(self._devices)
        return Load(seconds, self._rows, devices, self._long, self._bulk, self._shares.bulk)

    def _is_shared(self, now: float) -> bool:
        return any(self._bulk.values()) or now - self._bulk_asked < _BULK_SECONDS

    def _seat(
        self, demand: Demand, deadline: float, *, long: bool, firm: bool, bulk: bool
    ) -> Seat[P, R]:
        self._serial += 1
        large = demand.rows > self._costs.largest(demand.key)
        waiting = Waiting(demand.key, demand.rows, deadline, large, bulk, firm)
        seat: Seat[P, R] = Seat(
            demand, (deadline, self._serial), waiting, long=long, undone=demand.rows
        )
        self._seats.add(seat)
        self._count(seat, demand.rows)
        self._nbytes[bulk] += demand.nbytes
        return seat

    def _count(self, seat: Seat[P, R], change: int) -> None:
        rows = self._bulk if seat.waiting.bulk else self._rows
        rows[seat.demand.key] += change
        if seat.long:
            self._long[seat.demand.key] += change

    def _learn(self, seats: Sequence[Seat[P, R]], promised: float) -> None:
        """Compare what was promised with what came of it, from when there was a payload."""
        submitted = [seat.submitted for seat in seats if seat.submitted]
        took = time.monotonic() - min(submitted, default=math.inf)
        if took > promised or not any(seat.undone for seat in seats):
            self._doubt = self._doubt.learnt(promised, took)

    def _unqueue(self, seat: Seat[P, R]) -> None:
        at = bisect_left(self._queue, seat.order, key=_order)
        if at < len(self._queue) and self._queue[at] is seat:
            del self._queue[at]

    # Going through.

    async def _serve(self, number: int, lane: Lane[P, R]) -> None:
        while True:
            while not (self._queue and self._is_turn_of(lane)):
                self._changed.clear()
                await self._changed.wait()
            await self._execute(number, lane)

    def _is_turn_of(self, lane: Lane[P, R]) -> bool:
        busy = {run.device for run in self._running.values()}
        return policy.is_turn(lane.device, busy, self._devices)

    async def _execute(self, number: int, lane: Lane[P, R]) -> None:
        queue = concerned = [*self._queue]  # whom a failure to form concerns: everyone
        try:
            batch, concerned = self._form(queue, lane)
            if batch is not None:
                await self._run(number, lane, batch, concerned)
        except Exception:
            logger.exception("a batch failed; %d jobs are told so", len(concerned))
            for seat in concerned:  # one error a waiter: each raises its own
                self._unqueue(seat)
                _fail(seat, InferenceFailed("the device failed on this batch; try again"))

    def _form(
        self, queue: Sequence[Seat[P, R]], lane: Lane[P, R]
    ) -> tuple[Batch[P] | None, list[Seat[P, R]]]:
        now = time.monotonic()
        others = self._devices - {run.device for run in self._running.values()} - {lane.device}
        waiting = [seat.waiting for seat in queue]
        decision = policy.form(
            waiting,
            self._costs,
            now,
            free=1 + len(others),
            devices=len(self._devices),
            running=policy.work_left(self._running.values(), self._freed, now),
            bulk_first=self._shares.is_bulks,
        )
        for at in decision.late:
            self._report(DropReport("late", _where(queue[at])))
            self._unqueue(queue[at])
            _fail(queue[at], DeadlineExceeded("the deadline could no longer be met; try again"))
        run = decision.run
        if run is None:
            return None, []
        self._shares = self._shares.took(
            self._costs.seconds(run.key, run.size),
            bulk=(bulk := waiting[run.takes[0][0]].bulk),
            others=any(one.bulk != bulk for one in waiting),
        )
        slices = tuple(self._take(queue[at], rows, now) for at, rows in run.takes)
        return Batch(run.key, run.size, slices, run.reason), [queue[at] for at, _ in run.takes]

    def _take(self, seat: Seat[P, R], rows: int, now: float) -> Slice[P]:
        start = seat.demand.rows - seat.waiting.left
        seat.started = seat.started or now
        seat.waiting = replace(seat.waiting, left=seat.waiting.left - rows)
        self._count(seat, -rows)
        if not seat.waiting.left:
            self._unqueue(seat)
        assert seat.payload is not None  # noqa: S101 - submit() set it; tells mypy
        return Slice(seat.payload, start, start + rows)

    async def _run(
        self, number: int, lane: Lane[P, R], batch: Batch[P], seats: Sequence[Seat[P, R]]
    ) -> None:
        """Run a batch; in pieces, and never one so large again, if the device has no memory."""
        try:
            await self._run_once(number, lane, batch, seats)
        except OutOfMemory:
            if self._costs.largest(batch.key) >= batch.size:
                raise
            left = [*zip(seats, batch.slices, strict=True)]
            while left:
                piece, left = _cut(left, self._costs.largest(batch.key))
                rows = sum(part.rows for _, part in piece)
                size = self._costs.curves[batch.key].fitting(rows)
                slices = tuple(part for _, part in piece)
                smaller = Batch(batch.key, size, slices, batch.reason)
                await self._run(number, lane, smaller, [seat for seat, _ in piece])

    async def _run_once(
        self, number: int, lane: Lane[P, R], batch: Batch[P], seats: Sequence[Seat[P, R]]
    ) -> None:
        expected = self._costs.seconds(batch.key, batch.size)
        run = self._running[number] = Run(lane.device, time.monotonic(), expected)
        self._changed.set()  # if no device is idle now, it is the turn of their other lanes
        failed = True
        try:
            results = await lane.run(batch)
            # All of them are matched before the first is told.
            matched = list(zip(seats, batch.slices, results, strict=True))
            for seat, part, result in matched:
                _give(seat, part, result, batch.rows)
            failed = False
        except OutOfMemory:
            self._costs = self._costs.below(batch.key, batch.size)
            logger.warning(
                "the device has no memory for %d views of %d pixels at once; from now on %d",
                *(batch.size, batch.key.side, self._costs.largest(batch.key)),
            )
            raise
        finally:
            now = time.monotonic()
            seconds = now - run.since(self._freed)
            self._freed[lane.device] = now
            del self._running[number]
            self._changed.set()
            self._failures = self._failures + 1 if failed else 0
            if not failed:
                self._costs = self._costs.observed(batch.key, batch.size, seconds)
            rate = len(self._devices) * self._costs.rate(batch.key)
            self._report(_reported(batch, seats, seconds, rate, failed=failed))


def _cut(
    parts: Sequence[tuple[Seat[P, R], Slice[P]]], most: int
) -> tuple[list[tuple[Seat[P, R], Slice[P]]], list[tuple[Seat[P, R], Slice[P]]]]:
    """Give the first so many rows of a batch, and the others."""
    piece, rest, room = [], [], most
    for seat, part in parts:
        middle = min(part.start + room, part.stop)
        room -= middle - part.start
        if part.start < middle:
            piece.append((seat, replace(part, stop=middle)))
        if middle < part.stop:
            rest.append((seat, replace(part, start=middle)))
    return piece, rest


def _order(seat: Seat[P, R]) -> tuple[float, int]:
    return seat.order


def _where(seat: Seat[P, R]) -> Literal["queue", "batch"]:
    return "batch" if seat.started else "queue"


def _give(seat: Seat[P, R], part: Slice[P], result: R, batch_rows: int) -> None:
    seat.parts.append((part.start, result))
    seat.batch_rows = batch_rows
    seat.undone -= part.rows
    if not seat.undone and seat.future is not None and not seat.future.done():
        seat.future.set_result(None)


def _fail(seat: Seat[P, R], error: ServiceError) -> None:
    if seat.future is not None and not seat.future.done():
        seat.future.set_exception(error)


def _reported(
    batch: Batch[P], seats: Sequence[Seat[P, R]], seconds: float, rate: float, *, failed: bool
) -> BatchReport:
    firsts = (seat for seat, part in zip(seats, batch.slices, strict=True) if part.start == 0)
    waits = tuple(Wait(seat.started - seat.submitted, seat.waiting.bulk) for seat in firsts)
    return BatchReport(
        batch.key, batch.size, batch.rows, batch.reason, seconds, waits, rate, failed
    )
