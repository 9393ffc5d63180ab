"""What to run next, and whom to refuse: the batcher's decisions, without clock, loop or I/O.

Three rules:

1. *Cheapest cover.* When a device is free, the rows of one key that wait, or its share of them
   if others are free too, are covered by the set of buckets that costs least by measurement, and
   the largest of these is run, filled in order; of the buckets that let the first of them meet
   its deadline. Nothing waits for company.
2. *Earliest deadline first; large jobs yield while they can afford to.* A job that does not fit
   one batch lets the others pass as long as it would meet its deadline even if it were served
   last; so a 144-view job never makes a one-view request wait for more than one batch.
3. *Admit what would be done in time if it were served last.* A newcomer overtakes only jobs with
   later deadlines than its own, and all of the queue, those jobs too, is done before its own
   deadline: so it breaks no promise. Runs cannot be interrupted and a tight deadline may force
   a small one, which is why one largest run of each key is kept in hand; and several devices
   share work by whole runs, so the last may end one run later than an even share would.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Literal, NamedTuple

_RISE, _FALL = 0.3, 0.05  # of the way to what was observed
_SURPRISE = 4  # times what was predicted; one batch that took longer says no more than that

Reason = Literal["full", "drained", "deadline"]


class Key(NamedTuple):
    """What rows must share to go in one batch."""

    member: int  # which model of the ensemble
    side: int  # pixels of a view


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds of every bucket (batch size) of every key, now and at the beginning."""

    seconds: Mapping[Key, Mapping[int, float]]
    at_first: Mapping[Key, Mapping[int, float]] | None = None  # as `seconds` if not given

    def largest(self, key: Key) -> int:
        """Give the most rows that run at once."""
        return max(self.seconds[key])

    def fitting(self, key: Key, rows: int) -> int:
        """Give the smallest bucket that holds so many rows."""
        return min(size for size in self.seconds[key] if size >= rows)

    def of(self, key: Key, rows: int) -> float:
        """Predict the seconds for `rows` rows of one key, by their cheapest cover."""
        return cover(tuple(self.seconds[key].items()), rows).seconds

    def total(self, rows: Mapping[Key, int]) -> float:
        """Predict the seconds for the rows of several keys."""
        return sum(self.of(key, count) for key, count in rows.items())

    def longest(self, rows: Mapping[Key, int]) -> float:
        """Predict the seconds of the longest batch that these rows may be in."""
        fitting = {key: min(count, self.largest(key)) for key, count in rows.items()}
        return max((self.of(key, count) for key, count in fitting.items()), default=0.0)

    def rate(self, key: Key) -> float:
        """Give the most rows a second that one device computes."""
        return max(size / seconds for size, seconds in self.seconds[key].items())

    def observed(self, key: Key, size: int, seconds: float) -> "Costs":
        """Move one bucket's cost towards what it took just now: up quickly, down slowly.

        What is predicted is promised, so it has to be what a batch takes at most, mostly. The
        key's other buckets forget slowly that they were slow: one that is predicted to be too
        slow to be run would never be measured again.
        """
        at_first = self.at_first or self.seconds
        buckets = {
            other: took - _FALL * max(0.0, took - at_first[key][other])
            for other, took in self.seconds[key].items()
        }
        before = self.seconds[key][size]
        change = min(seconds, _SURPRISE * before) - before
        buckets[size] = before + change * (_RISE if change > 0 else _FALL)
        return Costs({**self.seconds, key: buckets}, at_first)


@dataclass(frozen=True, slots=True)
class Cover:
    """Buckets that together hold some rows: what they cost, and the largest of them."""

    seconds: float = 0.0
    largest: int = 0


def cover(buckets: tuple[tuple[int, float], ...], rows: int) -> Cover:
    """Find the cheapest buckets, given as (size, seconds), that hold `rows` rows."""
    sizes = dict(buckets)
    best = min(sizes, key=lambda size: sizes[size] / size)
    # What is beyond the largest bucket goes by whole best ones; the rest is in the table.
    whole = max(0, math.ceil((rows - max(sizes)) / best))
    rest = _covers(buckets)[max(0, rows - whole * best)]
    return Cover(whole * sizes[best] + rest.seconds, max(rest.largest, best if whole else 0))


@lru_cache(maxsize=256)
def _covers(buckets: tuple[tuple[int, float], ...]) -> tuple[Cover, ...]:
    """Find the cheapest cover for every number of rows up to the largest bucket."""
    found = [Cover()]
    for rows in range(1, max(size for size, _ in buckets) + 1):
        found.append(
            min(
                (
                    Cover(seconds + rest.seconds, max(size, rest.largest))
                    for size, seconds in buckets
                    for rest in (found[max(0, rows - size)],)
                ),
                key=lambda cover: (cover.seconds, cover.largest),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job as the policy sees it: `left` rows are still to be taken.

    A `large` job is one that never fitted one batch, however little of it is left.
    """

    key: Key
    left: int
    deadline: float
    large: bool = False


@dataclass(frozen=True, slots=True)
class Formation:
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
    run: Formation | None


def form(
    queue: Sequence[Waiting], costs: Costs, now: float, *, free: int = 1, devices: int = 1
) -> Decision:
    """Decide what one of `free` free devices runs, of `devices`; `queue` is by deadline.

    It takes its share and leaves theirs to the others. Looks no further than the batch needs:
    a late job deeper in the queue is found later.
    """
    late: list[int] = []
    same: list[int] = []  # the positions whose rows may share the batch
    rows = 0
    for at in _order(queue, costs, now, devices):
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
    share = math.ceil(rows / free)
    size, reason = _bucket(costs.seconds[first.key], share, first.deadline - now)
    takes = _fill(((at, queue[at].left) for at in same), size)
    return Decision(tuple(late), Formation(first.key, size, tuple(takes), reason))


def _order(queue: Sequence[Waiting], costs: Costs, now: float, devices: int) -> Iterable[int]:
    large = [at for at, job in enumerate(queue) if job.large]
    everything = Load(0.0, rows_left(queue), devices)
    if not large or now + everything.seconds(costs) > queue[large[0]].deadline:
        return range(len(queue))
    return chain((at for at, job in enumerate(queue) if not job.large), large)


def rows_left(queue: Iterable[Waiting]) -> dict[Key, int]:
    """Count the rows that wait, by key."""
    rows: dict[Key, int] = {}
    for job in queue:
        rows[job.key] = rows.get(job.key, 0) + job.left
    return rows


def _bucket(buckets: Mapping[int, float], rows: int, slack: float) -> tuple[int, Reason]:
    # Never empty: a first job that no bucket serves in time was dropped as late.
    in_time = tuple((size, seconds) for size, seconds in buckets.items() if seconds <= slack)
    chosen = cover(in_time, rows).largest
    if chosen < cover(tuple(buckets.items()), rows).largest:
        return chosen, "deadline"
    return chosen, "full" if rows >= chosen else "drained"


def _fill(jobs: Iterable[tuple[int, int]], room: int) -> Iterator[tuple[int, int]]:
    for at, left in jobs:
        taken = min(room, left)
        if not taken:
            return
        room -= taken
        yield at, taken


@dataclass(frozen=True, slots=True)
class Load:
    """All accepted work that is not done, and the devices that share it."""

    running: float  # seconds of work left in the batches that run, as predicted
    rows: Mapping[Key, int]  # rows that wait or whose pictures are being decoded
    devices: int = 1

    def seconds(self, costs: Costs) -> float:
        """Predict when all of it is done, at the latest.

        Devices share the work but not a batch: one may have to run the longest alone when the
        others have nothing left (Graham's bound for list scheduling).
        """
        shared = (self.running + costs.total(self.rows)) / self.devices
        return shared + (1 - 1 / self.devices) * costs.longest(self.rows)


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether work may join the load, and in how many seconds it could."""

    alone: float  # seconds it takes when nothing else runs
    done_in: float  # seconds until everything, this work included, is done
    retry_after: float  # seconds until it would be admitted: 0 for now, infinity for never

    @property
    def admitted(self) -> bool:
        """Is there time for it now."""
        return self.retry_after == 0

    @property
    def possible(self) -> bool:
        """Would there be time for it on idle devices."""
        return math.isfinite(self.retry_after)


def admit(load: Load, rows: Mapping[Key, int], costs: Costs, seconds: float) -> Admission:
    """Decide whether work that must be done in `seconds` may join the load."""
    alone = costs.total({key: math.ceil(count / load.devices) for key, count in rows.items()})
    done_in, in_hand = alone, 0.0
    if load.running or any(load.rows.values()):
        together = {key: load.rows.get(key, 0) + rows.get(key, 0) for key in {*load.rows, *rows}}
        in_hand = sum(costs.of(k, costs.largest(k)) for k, n in together.items() if n)
        done_in = replace(load, rows=together).seconds(costs)
    late = max(0.0, done_in + in_hand - seconds)
    return Admission(alone, done_in, late if alone <= seconds else math.inf)


class Place(NamedTuple):
    """Where a lane runs batches; see `service.work.Lane`."""

    device: int = 0
    alone: int = 0


def devices(lanes: Iterable[Place]) -> frozenset[int]:
    """Give the numbers of the devices that compute batches side by side."""
    return frozenset(lane.device for lane in lanes if not lane.alone)


def is_turn(
    lane: Place, running: Collection[Place], devices: Collection[int], rows: int, most: int
) -> bool:
    """Tell whether a free lane may run: the one that needs all devices, or one of the others.

    `running` are the lanes that run, of these devices; `rows` all that are to be done, `most` as
    many as are for all devices together. A device that is at work leaves them to one that is not.
    """
    if not running:
        return bool(lane.alone) == (rows <= most)
    if lane.alone or any(other.alone for other in running):
        return False
    busy = {other.device for other in running}
    return lane.device not in busy or len(busy) == len(devices)


@dataclass(frozen=True, slots=True)
class Run:
    """A batch on a device: since when, and for how many seconds as predicted."""

    device: int
    started: float
    expected: float

    def since(self, freed: Mapping[int, float]) -> float:
        """Tell since when it has its device, given when each last finished a batch.

        A device's two lanes take turns: the time before it was free is another batch's.
        """
        return max(self.started, freed.get(self.device, self.started))


def work_left(runs: Iterable[Run], freed: Mapping[int, float], now: float) -> float:
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
