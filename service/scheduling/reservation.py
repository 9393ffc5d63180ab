"""A reservation: one admitted job, from admission to its outcome."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal

from service.errors import ServiceError
from service.scheduling.policy import QueuedJob
from service.scheduling.types import JobSpec, Outcome, P, R, Slice, Wait


@dataclass(eq=False, slots=True)
class Reservation(Generic[P, R]):
    """Queue capacity reserved for a job, then its payload in the queue, then its results.

    Its holder passes it to `Batcher.submit`; only the batcher changes it.
    """

    spec: JobSpec
    order: tuple[float, int]  # deadline, then serial number
    job: QueuedJob
    long: bool  # as `service.scheduling.admission` defines it
    unfinished_rows: int
    payload: P | None = None
    future: asyncio.Future[None] | None = None
    submitted: float = 0.0
    started: float = 0.0
    batch_rows: int = 0
    parts: list[tuple[int, R]] = field(default_factory=list)  # (first row, result)

    @property
    def where(self) -> Literal["queue", "batch"]:
        """Whether all of its rows are queued, or some have been in a batch."""
        return "batch" if self.started else "queue"

    def take(self, rows: int, now: float) -> Slice[P]:
        """Take the next rows for a batch."""
        start = self.spec.start + self.spec.rows - self.job.left
        self.started = self.started or now
        self.job = replace(self.job, left=self.job.left - rows)
        assert self.payload is not None  # noqa: S101 - submit() set it; tells mypy
        return Slice(self.payload, start, start + rows)

    def add_result(self, part: Slice[P], result: R, batch_rows: int) -> None:
        """Add the result of a slice; the last one completes the job."""
        self.parts.append((part.start, result))
        self.batch_rows = batch_rows
        self.unfinished_rows -= part.rows
        if not self.unfinished_rows and self.future is not None and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: ServiceError) -> None:
        """Raise an error in `Batcher.submit`, if it waits for this job."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def outcome(self, now: float) -> Outcome[R]:
        """Return the results of a job that was completed just now."""
        return Outcome(
            tuple(part for _, part in sorted(self.parts, key=lambda part: part[0])),
            self.started - self.submitted,
            now - self.started,
            self.batch_rows,
        )

    def wait(self) -> Wait:
        """Return how long its first row was queued."""
        return Wait(self.started - self.submitted, self.job.background)


Parts = Sequence[tuple[Reservation[P, R], Slice[P]]]


def split(parts: Parts[P, R], rows: int) -> tuple[Parts[P, R], Parts[P, R]]:
    """Split the slices of a batch after so many rows."""
    piece, rest = [], []
    for reservation, part in parts:
        middle = min(part.start + rows, part.stop)
        rows -= middle - part.start
        if part.start < middle:
            piece.append((reservation, replace(part, stop=middle)))
        if middle < part.stop:
            rest.append((reservation, replace(part, start=middle)))
    return piece, rest
