"""What to run next, and on which executor: decisions without clock, event loop or I/O.

Three rules; admission (`service.scheduling.admission`) is the fourth:

1. *Cheapest cover.* When a device is free, the queued rows of one key, or its share of them if
   other devices are free too, are covered by the batches that cost least by measurement, and the
   largest of these is run, filled in order; of the sizes that let the first of them meet its
   deadline. No row waits for others to join it.
2. *Earliest deadline first; large jobs yield while they can afford to.* A job that does not fit
   one batch lets others pass as long as it would meet its deadline even if it were served last; so
   a 144-view job never makes a one-view request wait for more than one batch.
3. *Interactive before background, which has its share.* Background rows are run when no others
   wait, or when those have had more than their share of the time; and wherever a bucket would be
   padded.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.scheduling.admission import QueueLoad
from service.scheduling.cost_model import CostModel, Key

Reason = Literal["full", "drained", "deadline"]


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job as the policy sees it: `left` rows are not yet in a batch.

    A `large` job is one that never fitted one batch, however little of it is left. A `background`
    job yields to interactive ones; a `promised_full_share` one was promised all of the time, since
    there was no background work then.
    """

    key: Key
    left: int
    deadline: float
    large: bool = False
    background: bool = False
    promised_full_share: bool = False


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The next batch: how many rows of which queue positions, in a bucket of `size` rows."""

    key: Key
    size: int
    takes: tuple[tuple[int, int], ...]  # (position in the queue, rows)
    reason: Reason

    @property
    def rows(self) -> int:
        """The rows of jobs; the rest of the bucket is padding."""
        return sum(rows for _, rows in self.takes)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the queue now: jobs to drop as too late, and a batch to run, if any."""

    late: tuple[int, ...]  # queue positions that can no longer meet their deadline
    run: BatchPlan | None


@dataclass(frozen=True, slots=True)
class FairShare:
    """Which class is served next while interactive and background rows wait.

    Weighted fair queueing, by the cost of batches: interactive rows are served until background
    work is owed time. While only one class waits nothing is owed; but the last background batch
    counts, or another one would run between the next two interactive ones.
    """

    background: float  # share of the time, over 0 and below 1
    owed: float = 0.0  # seconds, to background work

    @property
    def is_background(self) -> bool:
        """Whether background work is served next."""
        return self.owed > 0

    def took(self, seconds: float, *, background: bool, others: bool) -> "FairShare":
        """Count a batch of one class; `others` says whether the other class waited."""
        change = -(1 - self.background) * seconds if background else self.background * seconds
        if not others:
            return FairShare(self.background, min(change, 0.0))
        return FairShare(self.background, self.owed + change)


def form(  # noqa: PLR0913 - all that decides
    queue: Sequence[QueuedJob],
    costs: CostModel,
    now: float,
    *,
    free: int = 1,
    devices: int = 1,
    running: float = 0.0,
    background_first: bool = False,
) -> Decision:
    """Decide what one of `free` free devices runs, of `devices`; `queue` is by deadline.

    `running` are the seconds of work left in the running batches. The device takes its share of the
    rows and leaves the rest to the other free ones.
    """
    order: Iterable[int] = range(len(queue))
    if any(job.large or job.background for job in queue):
        load = QueueLoad(running, rows_left(queue), devices)
        order = _order(queue, now + load.seconds(costs), background_first=background_first)
    positions, late = _candidates(queue, order, costs, now, free=free, devices=devices)
    if not positions:
        return Decision(late, None)
    first = queue[positions[0]]
    same_class = sum(queue[n].left for n in positions if queue[n].background == first.background)
    share = math.ceil(same_class / free)
    size, reason = _size(costs, first.key, share, first.deadline - now)
    end = now + costs.seconds(first.key, size)  # which is too late for some that would fill it
    rest = (position for position in positions[1:] if queue[position].deadline >= end)
    takes = tuple(_fill(((n, queue[n].left) for n in (positions[0], *rest)), size))
    size = min(size, costs.curves[first.key].fitting(sum(taken for _, taken in takes)))
    return Decision(late, BatchPlan(first.key, size, takes, reason))


def _candidates(  # noqa: PLR0913 - all that decides
    queue: Sequence[QueuedJob],
    order: Iterable[int],
    costs: CostModel,
    now: float,
    *,
    free: int,
    devices: int,
) -> tuple[list[int], tuple[int, ...]]:
    """Return the positions whose rows may share the next batch, and those that are too late.

    Reads no more of the queue than the batches of `free` devices need: a late job further back is
    dropped later.
    """
    late: list[int] = []
    same: list[int] = []
    rows = 0
    for position in order:
        job = queue[position]
        if same and job.key != queue[same[0]].key:
            continue
        if costs.of(job.key, math.ceil(job.left / devices)) > job.deadline - now:
            late.append(position)
            continue
        same.append(position)
        rows += job.left
        if rows >= free * costs.largest(job.key):
            break
    return same, tuple(late)


def _order(
    queue: Sequence[QueuedJob], served_last: float, *, background_first: bool
) -> Iterable[int]:
    """Return positions in the order in which they are served: class by class, by deadline.

    Large jobs yield to the others of their class if they meet their deadline when served last; and
    background jobs, if it is their turn, yield to a job that was promised all of the time.
    """

    def yields(position: int) -> bool:
        job = queue[position]
        return job.large and served_last <= first[job.background]

    first = {job.background: job.deadline for job in reversed(queue) if job.large}
    ranked = sorted(range(len(queue)), key=yields)  # a stable sort: by deadline otherwise
    background, others = (
        [position for position in ranked if queue[position].background is is_background]
        for is_background in (True, False)
    )
    if background_first and not (others and queue[others[0]].promised_full_share):
        return background + others
    return others + background


def rows_left(queue: Iterable[QueuedJob]) -> dict[Key, int]:
    """Count the queued rows by key."""
    rows: dict[Key, int] = {}
    for job in queue:
        rows[job.key] = rows.get(job.key, 0) + job.left
    return rows


def _size(costs: CostModel, key: Key, rows: int, slack: float) -> tuple[int, Reason]:
    """Choose a batch size for so many rows; the first job has `slack` seconds left."""
    curve = costs.curves[key]
    chosen = curve.choose(rows, slack)  # above 0: a job that no batch serves in time was dropped
    if chosen < curve.choose(rows):
        return chosen, "deadline"
    is_full = rows > chosen or rows == chosen == costs.largest(key)
    return chosen, "full" if is_full else "drained"


def _fill(jobs: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    for position, left in jobs:
        taken = min(size, left)
        if not taken:
            return
        size -= taken
        yield position, taken


def is_turn(device: int, busy: Collection[int], devices: Collection[int]) -> bool:
    """Whether a free executor of a device may run a batch: not while only others are idle."""
    return device not in busy or len(busy) == len(devices)


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch on a device: its start, and its predicted seconds."""

    device: int
    started: float
    expected: float

    def since(self, freed: Mapping[int, float]) -> float:
        """Return since when it has its device, by when each device last finished a batch.

        A device's two executors take turns: until the device was free, another batch had it.
        """
        return max(self.started, freed.get(self.device, self.started))


def work_left(runs: Iterable[RunningBatch], freed: Mapping[int, float], now: float) -> float:
    """Predict the seconds of work left in batches, given in the order in which they began."""
    seconds = 0.0
    turns = dict(freed)  # by device: since when it has been running its batch
    for run in runs:
        seconds += remaining(run.expected, max(0.0, now - run.since(turns)))
        turns[run.device] = now  # any other batch on the device has yet to begin
    return seconds


def remaining(expected: float, elapsed: float) -> float:
    """Predict how much longer a batch runs; an overdue one, as long as it is overdue."""
    return abs(expected - elapsed)
