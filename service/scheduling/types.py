"""The batcher's inputs and outputs: job specs, batches, executors, outcomes, reports."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from service.scheduling.cost_model import Key
from service.scheduling.policy import Reason

P = TypeVar("P")  # a job's payload, opaque to the batcher
R = TypeVar("R")  # an executor's result for one slice


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The size of a job: rows of one key from row `start` on, and the bytes of its payload."""

    key: Key
    rows: int
    nbytes: int
    start: int = 0


@dataclass(frozen=True)  # without slots; see `service.worker.messages`
class Slice(Generic[P]):
    """Rows `start` to `stop` of one job."""

    payload: P
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)  # without slots; see `service.worker.messages`
class Batch(Generic[P]):
    """Slices of one key, together at most `size` rows; an executor pads them to `size`."""

    key: Key
    size: int
    slices: tuple[Slice[P], ...]
    reason: Reason

    @property
    def rows(self) -> int:
        """The number of rows without padding."""
        return sum(part.rows for part in self.slices)


@dataclass(frozen=True, slots=True)
class Executor(Generic[P, R]):
    """A coroutine function that runs a batch, giving one result a slice, and its device.

    A device has two executors: a GPU's copy one batch while they compute another, and cores of a
    CPU that have no part left of one batch begin with the next.
    """

    run: Callable[[Batch[P]], Awaitable[Sequence[R]]]
    device: int = 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A job's results, in the order of its rows, and its times."""

    parts: tuple[R, ...]
    queue_seconds: float  # from submission until its first row ran
    run_seconds: float  # from then until its last row was done
    batch_rows: int  # rows of all jobs in the last of its batches


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a job waited until its first row ran, and its priority."""

    seconds: float
    background: bool


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch that was run, or that failed."""

    key: Key
    size: int
    rows: int
    reason: Reason
    seconds: float  # of the device's time: from when it was free for this batch
    waits: tuple[Wait, ...]  # of the jobs whose first rows these were
    rate: float  # rows of this key that all devices compute in a second, as known by now
    failed: bool


@dataclass(frozen=True, slots=True)
class DropReport:
    """A job that ended without a result: too late, or cancelled by its client."""

    why: Literal["late", "cancelled"]
    where: Literal["queue", "batch"]


@dataclass(frozen=True, slots=True)
class RestartReport:
    """A worker that ended by itself: it is being restarted, or serves again."""

    serves: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """Accepted work that is not done, and how long the device has been at its current batch."""

    rows: int = 0  # that wait, or whose images are being decoded
    background: int = 0  # of these, those of background requests
    nbytes: int = 0  # of all payloads, those still being made included
    seconds: float = 0.0  # until all interactive work is done, as predicted
    stalled: float = 0.0  # seconds that the oldest call to the device has had no result


Report = Callable[[BatchReport | DropReport | RestartReport], None]
