"""Admission control and retry times: decisions without clock, event loop or I/O.

*Admit a request if it meets its deadline when served last.* A new job overtakes only jobs with
later deadlines than its own, and the whole queue, those jobs included, is done before its own
deadline: so no earlier promise is broken. Batches cannot be interrupted, and a tight deadline may
force a small one: so one largest batch of each key is kept in reserve. Several devices share work
by whole batches: the last may end one batch later than an even share would.

*Correct predictions that were too low.* Machines have noisy neighbours, and not every stage of a
request is predicted: a safety factor follows how much later than promised requests were done.

*Keep headroom for long jobs.* A long job needs a long gap, which short ones would fill first. So
while short jobs are most of the queue, they leave as much time free as the largest recent job
takes.

*Keep a share for background work.* Interactive rows are served before background ones; while both
wait, background work has a share of the time (`service.scheduling.policy.FairShare`). So background
work is promised what its share alone brings; and while it is expected, interactive work is promised
what the rest of the time brings.

*Spread retries.* Each refused request is given its own retry time, when there will be capacity
behind those refused before it, so that clients do not all retry at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.scheduling.cost_model import CostModel, Key
from service.settings import BACKGROUND_SHARE

_HALF_LIFE = 10.0  # seconds in which the headroom for a large job halves
_MAX_HEADROOM = 0.5  # of a job's time, that it leaves free at most
_RISE, _FALL = 0.1, 0.01  # of the way to the observed factor, for each request
_MAX_FACTOR = 4.0
_MAX_RETRY_DELAY = 60.0  # seconds after there is capacity, for which refused requests are spread
_DECODE_RATE = 0.1  # weight of each image in the moving average of decode times


@dataclass(frozen=True, slots=True)
class Decoders:
    """Threads that decode images, and how long one image takes."""

    threads: int
    seconds: float = 0.0  # of an image, as a moving average; 0: not known yet

    def observed(self, seconds: float) -> "Decoders":
        """Update the average with one image's decode time."""
        before = self.seconds or seconds
        return Decoders(self.threads, before + _DECODE_RATE * (seconds - before))

    def decode_wait(self, images: int) -> float:
        """Predict for how many seconds the last of so many images waits for a thread."""
        return max(0, images - self.threads) * self.seconds / self.threads


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """All accepted work that is not done, and the devices that share it."""

    running: float  # seconds of work left in the running batches, as predicted
    rows: Mapping[Key, int]  # interactive ones that wait or whose images are being decoded
    devices: int = 1
    long: Mapping[Key, int] = field(default_factory=dict)  # of these, rows of long jobs
    background: Mapping[Key, int] = field(default_factory=dict)  # background rows that wait
    share: float = BACKGROUND_SHARE  # of the time, for background work while others wait
    shared: bool = False  # was there background work lately
    decode_wait: float = 0.0  # seconds that the last image waits to be decoded, as predicted
    headroom: float = 0.0  # seconds that short jobs leave free, at most half of their time
    safety_factor: float = 1.0  # by which predictions are multiplied

    @property
    def is_empty(self) -> bool:
        """Whether there is no accepted work."""
        waiting = any(self.rows.values()) or any(self.background.values())
        return not (self.decode_wait or self.running or waiting)

    @property
    def all_rows(self) -> Mapping[Key, int]:
        """All rows that wait, interactive and background, by key."""
        return added(self.rows, self.background)

    def seconds(self, costs: CostModel) -> float:
        """Predict when all of it is done, at the latest."""
        return self.decode_wait + self.computing(self.all_rows, costs)

    def computing(self, rows: Mapping[Key, int], costs: CostModel) -> float:
        """Predict when the running batches and then these rows are done, at the latest.

        Devices share the work but not a batch: one may have to run the longest alone when the
        others are idle (Graham's bound for list scheduling).
        """
        shared = (self.running + costs.total(rows)) / self.devices
        longest = costs.longest(rows) if self.devices > 1 else 0.0
        return shared + (1 - 1 / self.devices) * longest

    def is_mostly_short(self, costs: CostModel) -> bool:
        """Whether long jobs are less than half of the interactive work."""
        return 2 * costs.total(self.long) < costs.total(self.rows)


@dataclass(frozen=True, slots=True)
class Headroom:
    """Seconds kept free for the largest recent job; halves every 10 s."""

    seconds: float = 0.0
    updated: float = 0.0  # when, in seconds

    def left(self, now: float) -> float:
        """Return the seconds still kept free."""
        return self.seconds * math.exp2((self.updated - now) / _HALF_LIFE)

    def is_long(self, seconds: float, now: float) -> bool:
        """Whether a job of so many seconds is at least half of the largest."""
        return 2 * seconds >= self.left(now)

    def requested(self, seconds: float, now: float) -> "Headroom":
        """Keep room for a job of so many seconds, too."""
        return Headroom(seconds, now) if seconds >= self.left(now) else self


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether work may join the load, and in how many seconds it could."""

    alone: float  # seconds it takes when nothing else runs
    done_in: float  # seconds until everything, this work included, is done
    promised: float  # seconds in which it is done at the latest, if the costs are right
    idle: bool  # no other work is there
    retry_after: float  # seconds until it would be admitted: 0 for now, infinity for never
    retry_interval: float  # seconds after which there is capacity for another such job

    @property
    def admitted(self) -> bool:
        """Whether there is time for it now."""
        return self.retry_after == 0

    @property
    def possible(self) -> bool:
        """Whether there would be time for it on idle devices."""
        return math.isfinite(self.retry_after)


def evaluate(
    load: QueueLoad,
    rows: Mapping[Key, int],
    costs: CostModel,
    seconds: float,
    *,
    background: bool = False,
) -> Admission:
    """Decide whether work that must be done in `seconds` may join the load."""
    alone = costs.total({key: math.ceil(count / load.devices) for key, count in rows.items()})
    least = alone / load.share if background else alone
    if load.is_empty or least > seconds:
        wait = 0.0 if least <= seconds else math.inf
        return Admission(alone, least, least, load.is_empty, wait, alone)
    done_in = load.decode_wait + (_background_in if background else _interactive_in)(
        load, rows, costs
    )
    together = added(load.all_rows, rows)
    reserve = sum(costs.of(key, costs.largest(key)) for key, count in together.items() if count)
    free = 0.0
    if load.headroom > alone and not background and load.is_mostly_short(costs):
        free = max(0.0, min(load.headroom, _MAX_HEADROOM * seconds) - alone)
    promised = done_in + reserve
    late = max(0.0, load.safety_factor * (promised + free) - seconds)
    # A class that is promised a share of the time has all of it while the other has no work.
    share = load.share if background else 1 - load.share if load.shared else 1.0
    present = share if any((load.rows if background else load.background).values()) else 1.0
    wait = late * share / present
    return Admission(
        alone, done_in, promised, idle=False, retry_after=wait, retry_interval=alone / present
    )


def _background_in(load: QueueLoad, rows: Mapping[Key, int], costs: CostModel) -> float:
    """Predict when background work is done: at its share of the time, or after all other work.

    Work that was accepted before is promised all of the time.
    """
    served_last = load.computing(added(load.all_rows, rows), costs)
    return max(served_last, load.computing(added(load.background, rows), costs) / load.share)


def _interactive_in(load: QueueLoad, rows: Mapping[Key, int], costs: CostModel) -> float:
    """Predict when interactive work is done if background work takes all of its share."""
    seconds = load.computing(added(load.rows, rows), costs)
    return seconds / (1 - load.share) if load.shared else seconds


def added(rows: Mapping[Key, int], others: Mapping[Key, int]) -> dict[Key, int]:
    """Add numbers of rows up, by key."""
    return {**rows, **{key: rows.get(key, 0) + count for key, count in others.items()}}


@dataclass(frozen=True, slots=True)
class SafetyFactor:
    """How many times longer than promised requests take, lately: from 1 to 4."""

    factor: float = 1.0

    def observed(self, promised: float, took: float) -> "SafetyFactor":
        """Update with one request's seconds: up quickly, down slowly."""
        ratio = min(max(took / promised, 1.0), _MAX_FACTOR)
        rate = _RISE if ratio > self.factor else _FALL
        return SafetyFactor(self.factor + rate * (ratio - self.factor))


@dataclass(frozen=True, slots=True)
class RetrySlot:
    """When a refused request should be retried, and from when on the next one should."""

    at: float = -math.inf
    next: float = -math.inf

    def following(
        self, admission: Admission, now: float, safety_factor: float = 1.0
    ) -> "RetrySlot":
        """Return the slot of one more refused request: when there is capacity behind earlier ones.

        Each of those takes `safety_factor` times what is predicted. Some clients never retry, so
        a slot is at most a minute later than the first possible time.
        """
        earliest = now + admission.retry_after
        at = min(max(earliest, self.next), earliest + _MAX_RETRY_DELAY)
        return RetrySlot(at, at + safety_factor * admission.retry_interval)
