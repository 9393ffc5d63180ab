"""The batcher: the queue of rows, and the loops that run them in batches.

Whenever an executor is free it runs the batch that `service.scheduling.policy` forms from the
queue; `service.scheduling.intake` decides which jobs are admitted. The batcher knows no torch, no
HTTP and no images.

All state lives on the event loop; there is no lock and no timer. An exception of an executor or of
the policy fails the jobs concerned and never ends a loop.
"""

import asyncio
import contextlib
import logging
import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Generic, Self

from service.errors import DeadlineExceeded, InferenceFailed, Interrupted
from service.scheduling import policy
from service.scheduling.admission import Admission
from service.scheduling.batch_runner import BatchRunner
from service.scheduling.cost_model import CostModel
from service.scheduling.devices import Devices
from service.scheduling.intake import Intake
from service.scheduling.policy import FairShare
from service.scheduling.reservation import Reservation
from service.scheduling.types import (
    Backlog,
    Batch,
    DropReport,
    Executor,
    JobSpec,
    Outcome,
    P,
    R,
    Report,
    Slice,
)
from service.settings import BACKGROUND_SHARE

logger = logging.getLogger(__name__)

STOPPING = "the model is stopping; try again"

_order = attrgetter("order")


class Batcher(Generic[P, R]):
    """Forms batches for the executors for as long as it is entered."""

    def __init__(  # noqa: PLR0913 - all that it works with
        self,
        executors: Sequence[Executor[P, R]],
        costs: CostModel,
        *,
        max_bytes: int,
        report: Report,
        background_share: float = BACKGROUND_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executors = executors
        self._report = report
        self._clock = clock
        self._devices = Devices((executor.device for executor in executors), costs, clock)
        self._intake: Intake[P, R] = Intake(self._devices, max_bytes, background_share)
        self._queue: list[Reservation[P, R]] = []  # with a payload and rows to take, by order
        self._shares = FairShare(background_share)
        self._changed = asyncio.Event()  # the queue changed, or a batch started or ended
        self._runner: BatchRunner[P, R] = BatchRunner(self._devices, report, self._changed.set)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number, executor in enumerate(self._executors):
            self._tasks.append(asyncio.create_task(self._serve(number, executor)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._intake.fail_all(STOPPING)

    # Intake: reserve, then submit.

    @contextlib.contextmanager
    def reserve(
        self,
        specs: Sequence[JobSpec],
        deadline: float,
        *,
        decode_wait: float = 0.0,
        background: bool = False,
    ) -> Iterator[list[Reservation[P, R]]]:
        """Reserve queue capacity for jobs to be done by `deadline`, in seconds of the clock.

        Their payloads are expected to wait for `decode_wait` seconds before they are made. Those of
        `background` jobs have low priority. Raises what `admit` does. Leaving the context releases
        the reservations.
        """
        admission = self.admit(
            specs, deadline - self._clock(), decode_wait=decode_wait, background=background
        )
        reservations = self._intake.reserve(specs, deadline, admission, background=background)
        try:
            yield reservations
        finally:
            # Background jobs are mostly promised less than they get: there is nothing to learn.
            if not (admission.idle or background):
                self._intake.learn(reservations, admission.promised - decode_wait)
            for reservation in reservations:
                self.release(reservation)

    def follow(self, reservation: Reservation[P, R], spec: JobSpec) -> Reservation[P, R]:
        """Reserve for a job that takes the place of an admitted one, which is released.

        It has the same deadline and priority, and is not asked for again.
        """
        self.release(reservation)
        return self._intake.follow(reservation, spec)

    def admit(
        self,
        specs: Sequence[JobSpec],
        seconds: float,
        *,
        decode_wait: float = 0.0,
        background: bool = False,
    ) -> Admission:
        """Return how jobs that must be done in so many seconds are admitted, or raise.

        Raises `Overloaded`, and records its retry time, when there is no memory or no time for them
        now; `TooLarge` when there never is memory; `DeadlineExceeded` when idle devices could not
        do them in time either.
        """
        return self._intake.admit(specs, seconds, decode_wait, background=background)

    def predict(
        self, specs: Sequence[JobSpec], *, decode_wait: float = 0.0, background: bool = False
    ) -> tuple[float, float]:
        """Predict the seconds in which jobs would be done if they were admitted now.

        Also returns the share of the memory for payloads that would be filled.
        """
        evaluation = self._intake.evaluate(specs, math.inf, decode_wait, background=background)
        return evaluation.seconds, evaluation.filled

    async def submit(self, reservation: Reservation[P, R], payload: P) -> Outcome[R]:
        """Queue a payload and wait for the results of all its rows.

        Raises `DeadlineExceeded`, `InferenceFailed` or `Interrupted`. Cancelling it removes the
        rows that are still queued.
        """
        if not self.alive:
            raise Interrupted(STOPPING)
        reservation.payload = payload
        reservation.submitted = self._clock()
        self._intake.note_submitted(reservation)
        reservation.future = asyncio.get_running_loop().create_future()
        insort(self._queue, reservation, key=_order)
        self._changed.set()
        try:
            await reservation.future
        except asyncio.CancelledError:
            if reservation.future.cancelled():  # else it had an outcome, which was reported
                late = self._clock() >= reservation.job.deadline
                self._report(DropReport("late" if late else "cancelled", reservation.where))
            raise
        finally:
            self.release(reservation)
        return reservation.outcome(self._clock())

    def release(self, reservation: Reservation[P, R]) -> None:
        """Release a reservation and remove its rows from the queue; may be called twice."""
        if self._intake.release(reservation):
            self._unqueue(reservation)
            self._changed.set()  # what is left may be for another executor

    def _unqueue(self, reservation: Reservation[P, R]) -> None:
        index = bisect_left(self._queue, reservation.order, key=_order)
        if index < len(self._queue) and self._queue[index] is reservation:
            del self._queue[index]

    # State for probes and metrics.

    @property
    def alive(self) -> bool:
        """Whether the loops of all executors run."""
        return not any(task.done() for task in self._tasks)

    @property
    def failures(self) -> int:
        """The number of batches in a row that failed, up to now."""
        return self._devices.failures

    def backlog(self) -> Backlog:
        """Sum up the work that was accepted and is not done."""
        return self._intake.backlog()

    # Execution.

    async def _serve(self, number: int, executor: Executor[P, R]) -> None:
        while True:
            while not (self._queue and self._devices.is_turn(executor.device)):
                self._changed.clear()
                await self._changed.wait()
            await self._execute(number, executor)

    async def _execute(self, number: int, executor: Executor[P, R]) -> None:
        queue = concerned = [*self._queue]  # if no batch can be formed, all jobs fail
        try:
            batch, concerned = self._form(queue, executor)
            if batch is not None:
                await self._runner.run(number, executor, batch, concerned)
        except Exception as error:
            logger.exception("batch failed, failing %d jobs", len(concerned))
            for reservation in concerned:  # one error each, since each is raised by itself
                self._unqueue(reservation)
                reservation.fail(_failure(error))

    def _form(
        self, queue: Sequence[Reservation[P, R]], executor: Executor[P, R]
    ) -> tuple[Batch[P] | None, list[Reservation[P, R]]]:
        """Take the rows of the next batch from the queue, and drop jobs that are too late."""
        now, devices = self._clock(), self._devices
        jobs = [reservation.job for reservation in queue]
        decision = policy.form(
            jobs,
            devices.costs,
            now,
            free=1 + len(devices.idle - {executor.device}),
            devices=len(devices.numbers),
            running=devices.work_left(now),
            background_first=self._shares.is_background,
        )
        for position in decision.late:
            self._drop_late(queue[position])
        plan = decision.run
        if plan is None:
            return None, []
        background = jobs[plan.takes[0][0]].background
        self._shares = self._shares.took(
            devices.costs.seconds(plan.key, plan.size),
            background=background,
            others=any(job.background != background for job in jobs),
        )
        slices = tuple(self._take(queue[position], rows, now) for position, rows in plan.takes)
        batch = Batch(plan.key, plan.size, slices, plan.reason)
        return batch, [queue[position] for position, _ in plan.takes]

    def _drop_late(self, reservation: Reservation[P, R]) -> None:
        self._report(DropReport("late", reservation.where))
        self._unqueue(reservation)
        reservation.fail(DeadlineExceeded("the deadline could no longer be met; try again"))

    def _take(self, reservation: Reservation[P, R], rows: int, now: float) -> Slice[P]:
        part = reservation.take(rows, now)
        self._intake.count(reservation, -rows)
        if not reservation.job.left:
            self._unqueue(reservation)
        return part


def _failure(error: Exception) -> InferenceFailed:
    """Make the error of one job of a failed batch."""
    if isinstance(error, Interrupted):
        return Interrupted(str(error))
    return InferenceFailed("the device failed on this batch; try again")
