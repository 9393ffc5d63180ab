"""The batcher's intake: what is reserved, and whether more jobs may be admitted."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

from service.errors import DeadlineExceeded, Interrupted, Overloaded, TooLarge
from service.scheduling import admission
from service.scheduling.admission import Admission, Headroom, QueueLoad, RetrySlot, SafetyFactor
from service.scheduling.cost_model import Key
from service.scheduling.devices import Devices
from service.scheduling.policy import QueuedJob
from service.scheduling.reservation import Reservation
from service.scheduling.types import Backlog, JobSpec, P, R

_BACKGROUND_SECONDS = 10.0  # after background work was submitted, more of it is expected

_NO_RETRY_SLOTS = {False: RetrySlot(), True: RetrySlot()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the admission of jobs would mean now."""

    load: QueueLoad
    admission: Admission
    nbytes: int  # of the jobs' payloads
    used_bytes: int  # of the payloads there are
    max_bytes: int

    @property
    def seconds(self) -> float:
        """The seconds in which the jobs would be done."""
        return self.load.safety_factor * self.admission.promised

    @property
    def filled(self) -> float:
        """The share of the payload memory that would be in use."""
        return (self.used_bytes + self.nbytes) / self.max_bytes


class Intake(Generic[P, R]):
    """Admits and counts jobs, and learns how well predictions are kept."""

    def __init__(self, devices: Devices, max_bytes: int, background_share: float) -> None:
        self._devices = devices
        self._clock = devices.clock
        self._max_bytes = max_bytes
        self._background_share = background_share
        self._reservations: set[Reservation[P, R]] = set()  # that are not released
        self._rows: Counter[Key] = Counter()  # of those, interactive rows not yet in a batch
        self._long: Counter[Key] = Counter()  # of these, the rows of long jobs
        self._background: Counter[Key] = Counter()  # background rows not yet in a batch
        self._nbytes: Counter[bool] = Counter()  # of payloads, by whether they are background
        self._background_submitted = -math.inf  # when background work last was
        self._headroom = Headroom()
        self._safety_factor = SafetyFactor()
        self._retry_slots = _NO_RETRY_SLOTS  # by whether they are for background requests
        self._serial = 0

    def evaluate(
        self, specs: Sequence[JobSpec], seconds: float, decode_wait: float, *, background: bool
    ) -> Evaluation:
        """Evaluate jobs that must be done in so many seconds; changes nothing."""
        now = self._clock()
        rows: dict[Key, int] = {}
        for spec in specs:
            rows[spec.key] = rows.get(spec.key, 0) + spec.rows
        load = QueueLoad(
            self._devices.work_left(now),
            self._rows,
            len(self._devices.numbers),
            self._long,
            self._background,
            self._background_share,
            shared=self._is_shared(now),
            decode_wait=decode_wait,
            headroom=self._headroom.left(now),
            safety_factor=self._safety_factor.factor,
        )
        return Evaluation(
            load,
            admission.evaluate(load, rows, self._devices.costs, seconds, background=background),
            sum(spec.nbytes for spec in specs),
            # Background payloads have half of the memory; interactive ones may use all of it.
            self._nbytes[True] if background else self._nbytes.total(),
            self._max_bytes // 2 if background else self._max_bytes,
        )

    def admit(
        self, specs: Sequence[JobSpec], seconds: float, decode_wait: float, *, background: bool
    ) -> Admission:
        """Return the admission of jobs, or raise why they are refused and record the retry time."""
        evaluation = self.evaluate(specs, seconds, decode_wait, background=background)
        admitted = evaluation.admission
        if seconds <= 0:
            raise DeadlineExceeded("the deadline passed while the request was being sent")
        if not admitted.possible:
            where = "as background work" if background else "when nothing else runs"
            raise DeadlineExceeded(
                f"this takes about {admitted.promised:.2f} s {where}, more than the "
                f"{seconds:.2f} s it has; ask for fewer views or images, or for more time"
            )
        if not admitted.admitted:
            queued = self._rows.total() + self._background.total()
            raise Overloaded(
                f"{queued} rows are queued: this would be done in "
                f"{admitted.done_in:.2f} s, and the deadline is {seconds:.2f} s",
                retry_after=self._record_retry(evaluation, background=background),
            )
        self._check_memory(evaluation)
        if admitted.idle:  # clients that were given retry times need not wait for them
            self._retry_slots = _NO_RETRY_SLOTS
        return admitted

    def _record_retry(self, refused: Evaluation, *, background: bool) -> float:
        """Give a refused request the next retry slot; return the seconds until then."""
        now = self._clock()
        slot = self._retry_slots[background].following(
            refused.admission, now, refused.load.safety_factor
        )
        self._retry_slots = {**self._retry_slots, background: slot}
        return slot.at - now

    def _check_memory(self, evaluation: Evaluation) -> None:
        """Raise `TooLarge`, or `Overloaded` when payloads would exceed the memory for now."""
        if evaluation.nbytes > evaluation.max_bytes:
            raise TooLarge(
                f"the views asked for take {evaluation.nbytes} bytes, and the limit is "
                f"{evaluation.max_bytes}; ask for fewer views or images"
            )
        if evaluation.used_bytes + evaluation.nbytes > evaluation.max_bytes:
            raise Overloaded(
                f"queued images fill the limit of {evaluation.max_bytes} bytes",
                retry_after=evaluation.load.seconds(self._devices.costs),
            )

    def reserve(
        self, specs: Sequence[JobSpec], deadline: float, admitted: Admission, *, background: bool
    ) -> list[Reservation[P, R]]:
        """Make a reservation for each job of an admitted request."""
        now = self._clock()
        if not background:
            self._headroom = self._headroom.requested(admitted.alone, now)
        long = not background and self._headroom.is_long(admitted.alone, now)
        promised_full_share = not (background or self._is_shared(now))
        return [
            self._reservation(
                spec,
                QueuedJob(
                    spec.key,
                    spec.rows,
                    deadline,
                    large=spec.rows > self._devices.costs.largest(spec.key),
                    background=background,
                    promised_full_share=promised_full_share,
                ),
                long=long,
            )
            for spec in specs
        ]

    def follow(self, reservation: Reservation[P, R], spec: JobSpec) -> Reservation[P, R]:
        """Make a reservation with the deadline and priority of another one."""
        large = spec.rows > self._devices.costs.largest(spec.key)
        job = replace(reservation.job, key=spec.key, left=spec.rows, large=large)
        return self._reservation(spec, job, long=reservation.long)

    def _reservation(self, spec: JobSpec, job: QueuedJob, *, long: bool) -> Reservation[P, R]:
        self._serial += 1
        reservation: Reservation[P, R] = Reservation(
            spec, (job.deadline, self._serial), job, long, unfinished_rows=spec.rows
        )
        self._reservations.add(reservation)
        self.count(reservation, spec.rows)
        self._nbytes[job.background] += spec.nbytes
        return reservation

    def count(self, reservation: Reservation[P, R], change: int) -> None:
        """Count a reservation's rows that are not yet in a batch."""
        rows = self._background if reservation.job.background else self._rows
        rows[reservation.spec.key] += change
        if reservation.long:
            self._long[reservation.spec.key] += change

    def note_submitted(self, reservation: Reservation[P, R]) -> None:
        """Expect more background work if this is."""
        if reservation.job.background:
            self._background_submitted = reservation.submitted

    def release(self, reservation: Reservation[P, R]) -> bool:
        """Release a reservation; false if it was released before."""
        if reservation not in self._reservations:
            return False
        self._reservations.remove(reservation)
        self.count(reservation, -reservation.job.left)
        self._nbytes[reservation.job.background] -= reservation.spec.nbytes
        return True

    def learn(self, reservations: Sequence[Reservation[P, R]], promised: float) -> None:
        """Compare the promised seconds with those since the first payload was submitted."""
        submitted = [reservation for reservation in reservations if reservation.submitted]
        first = min((reservation.submitted for reservation in submitted), default=math.inf)
        took = self._clock() - first
        is_done = submitted != [] and not any(job.unfinished_rows for job in submitted)
        if took > promised or is_done:
            self._safety_factor = self._safety_factor.observed(promised, took)

    def fail_all(self, message: str) -> None:
        """Fail every job that is waited for; one error each."""
        for reservation in self._reservations:
            reservation.fail(Interrupted(message))

    def backlog(self) -> Backlog:
        """Sum up the work that was accepted and is not done."""
        now = self._clock()
        load = QueueLoad(self._devices.work_left(now), self._rows, len(self._devices.numbers))
        seconds = load.computing(self._rows, self._devices.costs)
        rows, background = self._rows.total(), self._background.total()
        return Backlog(
            rows + background,
            background,
            self._nbytes.total(),
            seconds,
            self._devices.stalled(now),
        )

    def _is_shared(self, now: float) -> bool:
        """Whether there is or was background work lately."""
        return (
            any(self._background.values()) or now - self._background_submitted < _BACKGROUND_SECONDS
        )
