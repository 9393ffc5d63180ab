"""The batcher: rows wait here, and only here.

Jobs bring rows; whenever a lane is free it takes the batch that `service.scheduling.policy` forms
from what has arrived by then, of what `service.scheduling.admission` let in. The batcher knows no
torch, no HTTP and no images.

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
from service.scheduling.admission import (
    Admission,
    Headroom,
    QueueLoad,
    RetrySlot,
    SafetyFactor,
    admit,
)
from service.scheduling.cost_model import CostModel, Key
from service.scheduling.policy import FairShare, QueuedJob, RunningBatch
from service.scheduling.types import (
    Backlog,
    Batch,
    BatchReport,
    DropReport,
    Executor,
    JobSpec,
    Outcome,
    P,
    R,
    Report,
    Slice,
    Wait,
)
from service.settings import BACKGROUND_SHARE

logger = logging.getLogger(__name__)

_BULK_SECONDS = 10.0  # for which bulk is expected again

_NO_INVITATIONS = {False: RetrySlot(), True: RetrySlot()}

STOPPING = "the service is stopping"


@dataclass(eq=False, slots=True)
class Reservation(Generic[P, R]):
    """A job's place: reserved, then queued with its payload, then served in slices.

    For its holder it is a token to hand to `Batcher.submit`; only the batcher writes to it.
    """

    spec: JobSpec
    order: tuple[float, int]  # deadline, then first come
    waiting: QueuedJob
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
        executors: Sequence[Executor[P, R]],
        costs: CostModel,
        *,
        max_bytes: int,
        report: Report,
        background_share: float = BACKGROUND_SHARE,
    ) -> None:
        self._executors = executors
        self._devices = frozenset(executor.device for executor in executors)
        self._costs = costs
        self._max_bytes = max_bytes
        self._report = report
        self._queue: list[Reservation[P, R]] = []  # seats with a payload and rows to take, by order
        self._seats: set[Reservation[P, R]] = set()  # all that are reserved and not released
        self._rows: Counter[Key] = Counter()  # of those, the interactive rows not yet taken
        self._long: Counter[Key] = Counter()  # of these, the rows of long jobs
        self._background: Counter[Key] = Counter()  # of those seats, the bulk rows not yet taken
        self._shares = FairShare(background_share)
        self._bulk_asked = -math.inf  # when it last was
        self._nbytes: Counter[bool] = Counter()  # of the seats' payloads, by whether they are bulk
        self._room = Headroom()
        self._doubt = SafetyFactor()
        self._invitations = _NO_INVITATIONS  # by whether it is to bulk
        self._serial = 0
        self._changed = asyncio.Event()  # something came or went, or a lane is free
        self._running: dict[int, RunningBatch] = {}  # by lane, in the order in which they began
        self._freed: dict[int, float] = {}  # by device: when it last finished a batch
        self._failures = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number, executor in enumerate(self._executors):
            self._tasks.append(asyncio.create_task(self._serve(number, executor)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reservation in self._seats:
            _fail(reservation, InferenceFailed(STOPPING))

    # What a caller does: reserve, then submit.

    @contextlib.contextmanager
    def reserve(
        self,
        specs: Sequence[JobSpec],
        deadline: float,
        *,
        decode_wait: float = 0.0,
        background: bool = False,
    ) -> Iterator[list[Reservation[P, R]]]:
        """Hold a seat for each demand, all to be done by `deadline` (`time.monotonic` seconds).

        Their payloads are expected to wait for `decode_wait` seconds before they are made. Those of
        `background` let others pass. Raises at once `Overloaded` when there is no room or no time
        for them now, and `DeadlineExceeded` when idle devices could not do them in time either.
        Leaving releases the seats.
        """
        admission = self.check(
            specs, deadline - time.monotonic(), decode_wait=decode_wait, background=background
        )
        if not background:
            self._room = self._room.asked(admission.alone, time.monotonic())
        long = not background and self._room.needs(admission.alone, time.monotonic())
        promised_full_share = not (background or self._is_shared(time.monotonic()))
        reservations = [
            self._reservation(
                spec,
                deadline,
                long=long,
                promised_full_share=promised_full_share,
                background=background,
            )
            for spec in specs
        ]
        try:
            yield reservations
        finally:
            if not (
                admission.idle or background
            ):  # which has mostly been promised less than it gets
                self._learn(reservations, admission.promised - decode_wait)
            for reservation in reservations:
                self.release(reservation)

    def check(
        self,
        specs: Sequence[JobSpec],
        seconds: float,
        *,
        decode_wait: float = 0.0,
        background: bool = False,
    ) -> Admission:
        """Raise what `reserve` would, for jobs that must be done in so many seconds."""
        now = time.monotonic()
        load, admission = self._admission(specs, seconds, decode_wait, now, background=background)
        if seconds <= 0:
            raise DeadlineExceeded("the deadline passed while the request was being sent")
        if not admission.possible:
            where = "as bulk, beside others" if background else "when nothing else runs"
            raise DeadlineExceeded(
                f"this takes about {admission.promised:.2f} s {where}, more than the "
                f"{seconds:.2f} s it has; ask for fewer views or images, or for more time"
            )
        if not admission.admitted:
            invitation = self._invitations[background].another(admission, now, load.doubt)
            self._invitations = {**self._invitations, background: invitation}
            queued = self._rows.total() + self._background.total()
            raise Overloaded(
                f"{queued} rows are queued: this would be done in "
                f"{admission.done_in:.2f} s, and the deadline is {seconds:.2f} s",
                retry_after=invitation.at - now,
            )
        nbytes = sum(spec.nbytes for spec in specs)
        most, used = (
            self._most_bytes(background=background),
            self._used_bytes(background=background),
        )
        if nbytes > most:
            raise TooLarge(
                f"the views asked for take {nbytes} bytes, and the limit is {most}; "
                "ask for fewer views or images"
            )
        if used + nbytes > most:
            raise Overloaded(
                f"the images that wait fill their {most} bytes of memory",
                retry_after=load.seconds(self._costs),
            )
        if admission.idle:  # whoever was invited may come
            self._invitations = _NO_INVITATIONS
        return admission

    def predict(
        self, specs: Sequence[JobSpec], *, decode_wait: float = 0.0, background: bool = False
    ) -> tuple[float, float]:
        """Predict what would be if such jobs were admitted now.

        Gives the seconds in which they would be done, and the share of the memory for payloads
        that would be filled.
        """
        load, admission = self._admission(
            specs, math.inf, decode_wait, time.monotonic(), background=background
        )
        nbytes = self._used_bytes(background=background) + sum(spec.nbytes for spec in specs)
        return load.doubt * admission.promised, nbytes / self._most_bytes(background=background)

    def _most_bytes(self, *, background: bool) -> int:
        return self._max_bytes // 2 if background else self._max_bytes  # half is left to the others

    def _used_bytes(self, *, background: bool) -> int:
        """Give what counts against that: bulk's own, or all."""
        return self._nbytes[True] if background else self._nbytes.total()

    def _admission(
        self,
        specs: Sequence[JobSpec],
        seconds: float,
        decode_wait: float,
        now: float,
        *,
        background: bool,
    ) -> tuple[QueueLoad, Admission]:
        rows: Counter[Key] = Counter()
        for spec in specs:
            rows[spec.key] += spec.rows
        load = replace(
            self._load(),
            decode_wait=decode_wait,
            room=self._room.left(now),
            doubt=self._doubt.factor,
            shared=self._is_shared(now),
        )
        return load, admit(load, rows, self._costs, seconds, background=background)

    async def submit(self, reservation: Reservation[P, R], payload: P) -> Outcome[R]:
        """Queue a payload on its seat and wait for the results of all its rows.

        Raises `DeadlineExceeded` or `InferenceFailed`. A caller that is cancelled while its
        rows wait takes them along: they cost no forward.
        """
        if not self.alive:
            raise InferenceFailed(STOPPING)
        reservation.payload = payload
        reservation.submitted = time.monotonic()
        if reservation.waiting.background:
            self._bulk_asked = reservation.submitted
        reservation.future = asyncio.get_running_loop().create_future()
        insort(self._queue, reservation, key=_order)
        self._changed.set()
        try:
            await reservation.future
        except asyncio.CancelledError:
            if reservation.future.cancelled():  # else it had an outcome, which was reported
                late = time.monotonic() >= reservation.waiting.deadline
                self._report(DropReport("late" if late else "cancelled", _where(reservation)))
            raise
        finally:
            self.release(reservation)
        return Outcome(
            tuple(part for _, part in sorted(reservation.parts, key=lambda part: part[0])),
            reservation.started - reservation.submitted,
            time.monotonic() - reservation.started,
            reservation.batch_rows,
        )

    def release(self, reservation: Reservation[P, R]) -> None:
        """Give a seat back, with the rows it has not had served; twice is harmless."""
        if reservation in self._seats:
            self._seats.remove(reservation)
            self._count(reservation, -reservation.waiting.left)
            self._nbytes[reservation.waiting.background] -= reservation.spec.nbytes
            self._unqueue(reservation)
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
        rows, background = self._rows.total(), self._background.total()
        return Backlog(rows + background, background, self._nbytes.total(), seconds, now - oldest)

    # Coming in.

    def _load(self) -> QueueLoad:
        seconds = policy.work_left(self._running.values(), self._freed, time.monotonic())
        devices = len(self._devices)
        return QueueLoad(
            seconds, self._rows, devices, self._long, self._background, self._shares.background
        )

    def _is_shared(self, now: float) -> bool:
        return any(self._background.values()) or now - self._bulk_asked < _BULK_SECONDS

    def _reservation(
        self,
        spec: JobSpec,
        deadline: float,
        *,
        long: bool,
        promised_full_share: bool,
        background: bool,
    ) -> Reservation[P, R]:
        self._serial += 1
        large = spec.rows > self._costs.largest(spec.key)
        waiting = QueuedJob(spec.key, spec.rows, deadline, large, background, promised_full_share)
        reservation: Reservation[P, R] = Reservation(
            spec, (deadline, self._serial), waiting, long=long, undone=spec.rows
        )
        self._seats.add(reservation)
        self._count(reservation, spec.rows)
        self._nbytes[background] += spec.nbytes
        return reservation

    def _count(self, reservation: Reservation[P, R], change: int) -> None:
        rows = self._background if reservation.waiting.background else self._rows
        rows[reservation.spec.key] += change
        if reservation.long:
            self._long[reservation.spec.key] += change

    def _learn(self, reservations: Sequence[Reservation[P, R]], promised: float) -> None:
        """Compare what was promised with what came of it, from when there was a payload."""
        submitted = [reservation.submitted for reservation in reservations if reservation.submitted]
        took = time.monotonic() - min(submitted, default=math.inf)
        if took > promised or not any(reservation.undone for reservation in reservations):
            self._doubt = self._doubt.learnt(promised, took)

    def _unqueue(self, reservation: Reservation[P, R]) -> None:
        at = bisect_left(self._queue, reservation.order, key=_order)
        if at < len(self._queue) and self._queue[at] is reservation:
            del self._queue[at]

    # Going through.

    async def _serve(self, number: int, executor: Executor[P, R]) -> None:
        while True:
            while not (self._queue and self._is_turn_of(executor)):
                self._changed.clear()
                await self._changed.wait()
            await self._execute(number, executor)

    def _is_turn_of(self, executor: Executor[P, R]) -> bool:
        busy = {run.device for run in self._running.values()}
        return policy.is_turn(executor.device, busy, self._devices)

    async def _execute(self, number: int, executor: Executor[P, R]) -> None:
        queue = concerned = [*self._queue]  # whom a failure to form concerns: everyone
        try:
            batch, concerned = self._form(queue, executor)
            if batch is not None:
                await self._run(number, executor, batch, concerned)
        except Exception:
            logger.exception("a batch failed; %d jobs are told so", len(concerned))
            for reservation in concerned:  # one error a waiter: each raises its own
                self._unqueue(reservation)
                _fail(reservation, InferenceFailed("the device failed on this batch; try again"))

    def _form(
        self, queue: Sequence[Reservation[P, R]], executor: Executor[P, R]
    ) -> tuple[Batch[P] | None, list[Reservation[P, R]]]:
        now = time.monotonic()
        others = self._devices - {run.device for run in self._running.values()} - {executor.device}
        waiting = [reservation.waiting for reservation in queue]
        decision = policy.form(
            waiting,
            self._costs,
            now,
            free=1 + len(others),
            devices=len(self._devices),
            running=policy.work_left(self._running.values(), self._freed, now),
            background_first=self._shares.is_background,
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
            background=(background := waiting[run.takes[0][0]].background),
            others=any(one.background != background for one in waiting),
        )
        slices = tuple(self._take(queue[at], rows, now) for at, rows in run.takes)
        return Batch(run.key, run.size, slices, run.reason), [queue[at] for at, _ in run.takes]

    def _take(self, reservation: Reservation[P, R], rows: int, now: float) -> Slice[P]:
        start = reservation.spec.rows - reservation.waiting.left
        reservation.started = reservation.started or now
        reservation.waiting = replace(reservation.waiting, left=reservation.waiting.left - rows)
        self._count(reservation, -rows)
        if not reservation.waiting.left:
            self._unqueue(reservation)
        assert reservation.payload is not None  # noqa: S101 - submit() set it; tells mypy
        return Slice(reservation.payload, start, start + rows)

    async def _run(
        self,
        number: int,
        executor: Executor[P, R],
        batch: Batch[P],
        reservations: Sequence[Reservation[P, R]],
    ) -> None:
        """Run a batch; in pieces, and never one so large again, if the device has no memory."""
        try:
            await self._run_once(number, executor, batch, reservations)
        except OutOfMemory:
            if self._costs.largest(batch.key) >= batch.size:
                raise
            left = [*zip(reservations, batch.slices, strict=True)]
            while left:
                piece, left = _cut(left, self._costs.largest(batch.key))
                rows = sum(part.rows for _, part in piece)
                size = self._costs.curves[batch.key].fitting(rows)
                slices = tuple(part for _, part in piece)
                smaller = Batch(batch.key, size, slices, batch.reason)
                await self._run(
                    number, executor, smaller, [reservation for reservation, _ in piece]
                )

    async def _run_once(
        self,
        number: int,
        executor: Executor[P, R],
        batch: Batch[P],
        reservations: Sequence[Reservation[P, R]],
    ) -> None:
        expected = self._costs.seconds(batch.key, batch.size)
        run = self._running[number] = RunningBatch(executor.device, time.monotonic(), expected)
        self._changed.set()  # if no device is idle now, it is the turn of their other lanes
        failed = True
        try:
            results = await executor.run(batch)
            # All of them are matched before the first is told.
            matched = list(zip(reservations, batch.slices, results, strict=True))
            for reservation, part, result in matched:
                _give(reservation, part, result, batch.rows)
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
            self._freed[executor.device] = now
            del self._running[number]
            self._changed.set()
            self._failures = self._failures + 1 if failed else 0
            if not failed:
                self._costs = self._costs.observed(batch.key, batch.size, seconds)
            rate = len(self._devices) * self._costs.rate(batch.key)
            self._report(_reported(batch, reservations, seconds, rate, failed=failed))


def _cut(
    parts: Sequence[tuple[Reservation[P, R], Slice[P]]], most: int
) -> tuple[list[tuple[Reservation[P, R], Slice[P]]], list[tuple[Reservation[P, R], Slice[P]]]]:
    """Give the first so many rows of a batch, and the others."""
    piece, rest, room = [], [], most
    for reservation, part in parts:
        middle = min(part.start + room, part.stop)
        room -= middle - part.start
        if part.start < middle:
            piece.append((reservation, replace(part, stop=middle)))
        if middle < part.stop:
            rest.append((reservation, replace(part, start=middle)))
    return piece, rest


def _order(reservation: Reservation[P, R]) -> tuple[float, int]:
    return reservation.order


def _where(reservation: Reservation[P, R]) -> Literal["queue", "batch"]:
    return "batch" if reservation.started else "queue"


def _give(reservation: Reservation[P, R], part: Slice[P], result: R, batch_rows: int) -> None:
    reservation.parts.append((part.start, result))
    reservation.batch_rows = batch_rows
    reservation.undone -= part.rows
    if not reservation.undone and reservation.future is not None and not reservation.future.done():
        reservation.future.set_result(None)


def _fail(reservation: Reservation[P, R], error: ServiceError) -> None:
    if reservation.future is not None and not reservation.future.done():
        reservation.future.set_exception(error)


def _reported(
    batch: Batch[P],
    reservations: Sequence[Reservation[P, R]],
    seconds: float,
    rate: float,
    *,
    failed: bool,
) -> BatchReport:
    firsts = (
        reservation
        for reservation, part in zip(reservations, batch.slices, strict=True)
        if part.start == 0
    )
    waits = tuple(
        Wait(reservation.started - reservation.submitted, reservation.waiting.background)
        for reservation in firsts
    )
    return BatchReport(
        batch.key, batch.size, batch.rows, batch.reason, seconds, waits, rate, failed
    )
