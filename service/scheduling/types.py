"""What passes through the batcher: demands, batches, outcomes, reports."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from service.scheduling.cost_model import Key
from service.scheduling.policy import Reason

P = TypeVar("P")  # what a job brings, opaque to the batcher
R = TypeVar("R")  # what a lane makes of one slice


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job will bring: so many rows of one key, and the bytes of its payload."""

    key: Key
    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Slice(Generic[P]):
    """Rows `start` to `stop` of one job."""

    payload: P
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch(Generic[P]):
    """What a lane runs: slices of one key, together at most `size` rows, to be padded to it."""

    key: Key
    size: int
    slices: tuple[Slice[P], ...]
    reason: Reason

    @property
    def rows(self) -> int:
        """Rows that are somebody's."""
        return sum(part.rows for part in self.slices)


@dataclass(frozen=True, slots=True)
class Executor(Generic[P, R]):
    """A way to run batches: a coroutine function giving one result a slice, and its device.

    A CPU has one lane; a GPU two, so that one batch is copied while the other is computed.
    """

    run: Callable[[Batch[P]], Awaitable[Sequence[R]]]
    device: int = 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A job's results, in the order of its rows, and where its time went."""

    parts: tuple[R, ...]
    queue_seconds: float  # from submission until its first row ran
    run_seconds: float  # from then until its last row was done
    batch_rows: int  # rows, anybody's, in the last of its batches


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a job waited until its first row ran, and whether it lets others pass."""

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
    """A job that left without an answer: too late, or its caller went away."""

    why: Literal["late", "cancelled"]
    where: Literal["queue", "batch"]


@dataclass(frozen=True, slots=True)
class RestartReport:
    """A worker that ended by itself: it is being started again, or serves again."""

    serves: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much accepted work there is, and how long the device has been at its present batch."""

    rows: int = 0  # that wait, or whose images are being decoded
    background: int = 0  # of these, those of bulk requests
    nbytes: int = 0  # of all payloads, those still being made included
    seconds: float = 0.0  # until all of it but bulk is done, as predicted
    stalled: float = 0.0  # seconds that the oldest call to the device has had no answer


Report = Callable[[BatchReport | DropReport | RestartReport], None]
