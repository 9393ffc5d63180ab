"""What to run next, and on which lane: the batcher's decisions, without clock, loop or I/O.

Three rules; whom to refuse is the fourth (`service.scheduling.admission`):

1. *Cheapest cover.* When a device is free, the rows of one key that wait, or its share of them
   if others are free too, are covered by the batches that cost least by measurement, and the
   largest of these is run, filled in order; of the sizes that let the first of them meet its
   deadline. No row waits for others to join it.
2. *Earliest deadline first; large jobs yield while they can afford to.* A job that does not fit
   one batch lets the others pass as long as it would meet its deadline even if it were served
   last; so a 144-view job never makes a one-view request wait for more than one batch.
3. *Interactive before bulk, which has its share.* Bulk rows are run when no others wait, or when
   those have had more than their share of the time; and wherever a bucket would be padded.
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
    """A job as the policy sees it: `left` rows are still to be taken.

    A `large` job is one that never fitted one batch, however little of it is left. A `background`
    job lets interactive ones pass; a `promised_full_share` one was promised all of the time, before
    anybody asked for bulk.
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
        """Rows that are somebody's; the rest of the bucket is padding."""
        return sum(rows for _, rows in self.takes)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the queue now: whom to drop as too late, and what to run if anything."""

    late: tuple[int, ...]  # queue positions that cannot meet their deadline any more
    run: BatchPlan | None


@dataclass(frozen=True, slots=True)
class FairShare:
    """Whose turn it is while interactive and bulk rows wait.

    Interactive rows are served until bulk is owed time, of which it has a share: weighted fair
    queueing, by what batches cost. For a time in which only one of them waits nothing is owed; but
    bulk's last batch counts, or another one would come between two of whoever comes next.
    """

    background: float  # share of the time, over 0 and below 1
    owed: float = 0.0  # seconds, to bulk

    @property
    def is_background(self) -> bool:
        """Is it bulk's turn."""
        return self.owed > 0

    def took(self, seconds: float, *, background: bool, others: bool) -> "FairShare":
        """Note a batch of one class, and whether there were others waiting."""
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

    `running` are the seconds of work left in the others' batches. It takes its share and leaves
    theirs to the others. Looks no further than the batch needs: a late job deeper in the queue
    is found later.
    """
    late: list[int] = []
    same: list[int] = []  # the positions whose rows may share the batch
    rows = 0
    order: Iterable[int] = range(len(queue))
    if any(job.large or job.background for job in queue):
        load = QueueLoad(running, rows_left(queue), devices)
        order = _order(queue, now + load.seconds(costs), background_first=background_first)
    for at in order:
        job = queue[at]
        if same and job.key != queue[same[0]].key:
            continue
        if costs.of(job.key, math.ceil(job.left / devices)) > job.deadline - now:
            late.append(at)
            continue
        same.append(at)
        rows += job.left
        if rows >= free * costs.largest(job.key):
            break
    if not same:
        return Decision(tuple(late), None)
    first = queue[same[0]]
    own = sum(queue[at].left for at in same if queue[at].background == first.background)
    share = math.ceil(own / free)
    size, reason = _size(costs, first.key, share, first.deadline - now)
    end = now + costs.seconds(first.key, size)  # which is too late for some that would fill it
    rest = (at for at in same[1:] if queue[at].deadline >= end)
    takes = tuple(_fill(((at, queue[at].left) for at in (same[0], *rest)), size))
    size = min(size, costs.curves[first.key].fitting(sum(taken for _, taken in takes)))
    return Decision(tuple(late), BatchPlan(first.key, size, takes, reason))


def _order(
    queue: Sequence[QueuedJob], served_last: float, *, background_first: bool
) -> Iterable[int]:
    """Give positions in the order in which they are served: class by class, by deadline.

    Large jobs let the others of their class pass if they are in time when they are served last;
    and bulk, if it is its turn, a job that is firm.
    """

    def yields(at: int) -> bool:
        job = queue[at]
        return job.large and served_last <= first[job.background]

    first = {job.background: job.deadline for job in reversed(queue) if job.large}
    ranked = sorted(range(len(queue)), key=yields)  # which keeps the order of those that are alike
    background, others = (
        [at for at in ranked if queue[at].background is is_background]
        for is_background in (True, False)
    )
    if background_first and not (others and queue[others[0]].promised_full_share):
        return background + others
    return others + background


def rows_left(queue: Iterable[QueuedJob]) -> dict[Key, int]:
    """Count the rows that wait, by key."""
    rows: dict[Key, int] = {}
    for job in queue:
        rows[job.key] = rows.get(job.key, 0) + job.left
    return rows


def _size(costs: CostModel, key: Key, rows: int, slack: float) -> tuple[int, Reason]:
    """Choose a batch size for so many rows, the first of which have so many seconds left."""
    curve = costs.curves[key]
    chosen = curve.choose(rows, slack)  # above 0: a job that no batch serves in time was dropped
    if chosen < curve.choose(rows):
        return chosen, "deadline"
    is_full = rows > chosen or rows == chosen == costs.largest(key)
    return chosen, "full" if is_full else "drained"


def _fill(jobs: Iterable[tuple[int, int]], room: int) -> Iterator[tuple[int, int]]:
    for at, left in jobs:
        taken = min(room, left)
        if not taken:
            return
        room -= taken
        yield at, taken


def is_turn(device: int, busy: Collection[int], devices: Collection[int]) -> bool:
    """Tell whether a free executor of a device may run a batch.

    A device that is busy leaves the rows to one that is not.
    """
    return device not in busy or len(busy) == len(devices)


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch on a device: since when, and for how many seconds as predicted."""

    device: int
    started: float
    expected: float

    def since(self, freed: Mapping[int, float]) -> float:
        """Tell since when it has its device, given when each last finished a batch.

        A device's two lanes take turns: the time before it was free is another batch's.
        """
        return max(self.started, freed.get(self.device, self.started))


def work_left(runs: Iterable[RunningBatch], freed: Mapping[int, float], now: float) -> float:
    """Predict the seconds of work left in batches, given in the order in which they began."""
    seconds = 0.0
    turns = dict(freed)  # by device: since when it has been at what it is doing
    for run in runs:
        seconds += remaining(run.expected, max(0.0, now - run.since(turns)))
        turns[run.device] = now  # whatever else is on the device has still to begin
    return seconds


def remaining(expected: float, elapsed: float) -> float:
    """Predict how much longer a batch runs; one that is overdue, as long again as it is."""
    return abs(expected - elapsed)
