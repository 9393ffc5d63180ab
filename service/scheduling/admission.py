"""Whom to refuse, and when to come again: decisions, without clock, loop or I/O.

*Admit what would be done in time if it were served last.* A newcomer overtakes only jobs with
later deadlines than its own, and all of the queue, those jobs too, is done before its own
deadline: so it breaks no promise. Runs cannot be interrupted and a tight deadline may force a
small one, which is why one largest run of each key is kept in hand; and several devices share
work by whole runs, so the last may end one run later than an even share would.

*Doubt what proved wrong.* Machines have neighbours, and not all that a request passes through is
predicted: what is promised is compared with what came of it, and promised less readily then.

*Leave room for long work.* A long job needs a long gap, which small ones would fill before it
is there. So while they hold most of what is queued, they leave as much free as the largest job
that was asked for lately takes.

*Keep a share for bulk.* Interactive rows go before bulk ones, and while both wait bulk has a share
of the time (`service.scheduling.policy.FairShare`). So bulk is promised what its share alone
brings, whoever else comes; and once it has been asked for, everybody else is promised what the rest
of the time brings.

*Tell everybody another time.* Who is refused is told when there will be room, behind those who
were refused before, so that those who do as they are told do not all come back at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.scheduling.cost_model import CostModel, Key
from service.settings import BACKGROUND_SHARE

_HALF_LIFE = 10.0  # seconds in which half of the room for a large job is forgotten
_MOST_ROOM = 0.5  # of the time that a job has, what it leaves free at most
_RISE, _FALL = 0.1, 0.01  # of the way to what was found; it is found for every job
_MOST_DOUBT = 4.0
_LONGEST = 60.0  # seconds after there is room, for which those wait who were refused before
_FORGET = 0.1  # of what images took to decode, with each one more


@dataclass(frozen=True, slots=True)
class Decoders:
    """Threads that decode images, and how long one takes."""

    threads: int
    seconds: float = 0.0  # of an image, lately

    def observed(self, seconds: float) -> "Decoders":
        """Learn what one image took."""
        if not self.seconds:
            return replace(self, seconds=seconds)
        return replace(self, seconds=self.seconds + _FORGET * (seconds - self.seconds))

    def decode_wait(self, images: int) -> float:
        """Predict for how many seconds the last of so many images waits for a thread."""
        return max(0, images - self.threads) * self.seconds / self.threads


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """All accepted work that is not done, and the devices that share it."""

    running: float  # seconds of work left in the batches that run, as predicted
    rows: Mapping[Key, int]  # interactive ones that wait or whose images are being decoded
    devices: int = 1
    long: Mapping[Key, int] = field(default_factory=dict)  # of these, rows of long jobs
    background: Mapping[Key, int] = field(default_factory=dict)  # bulk rows that wait, likewise
    share: float = BACKGROUND_SHARE  # of the time, what bulk has while others wait
    shared: bool = False  # has bulk been asked for, lately
    decode_wait: float = (
        0.0  # seconds that the last of the images waits to be decoded, as predicted
    )
    room: float = 0.0  # seconds that smaller jobs leave free, or half of their time if it is less
    doubt: float = 1.0  # how many times what is predicted all of it may take

    @property
    def is_nothing(self) -> bool:
        """Is nobody there."""
        return not (self.decode_wait or self.running or any(self.everything.values()))

    @property
    def everything(self) -> Mapping[Key, int]:
        """All rows that wait."""
        return added(self.rows, self.background)

    def seconds(self, costs: CostModel) -> float:
        """Predict when all of it is done, at the latest."""
        return self.decode_wait + self.computing(self.everything, costs)

    def computing(self, rows: Mapping[Key, int], costs: CostModel) -> float:
        """Predict when what runs and then these rows are done, at the latest.

        Devices share the work but not a batch: one may have to run the longest alone when the
        others have nothing left (Graham's bound for list scheduling).
        """
        shared = (self.running + costs.total(rows)) / self.devices
        return shared + (1 - 1 / self.devices) * costs.longest(rows)

    def is_mostly_short(self, costs: CostModel) -> bool:
        """Tell whether long jobs are less than half of what waits."""
        return 2 * costs.total(self.long) < costs.total(self.rows)


@dataclass(frozen=True, slots=True)
class Headroom:
    """Seconds that are left free for the largest job that was asked for lately."""

    seconds: float = 0.0
    at: float = 0.0  # when

    def left(self, now: float) -> float:
        """Give what of it is still left free: less and less."""
        return self.seconds * math.exp2((self.at - now) / _HALF_LIFE)

    def needs(self, seconds: float, now: float) -> bool:
        """Tell whether a job that takes so long is long: at least half of the largest."""
        return 2 * seconds >= self.left(now)

    def asked(self, seconds: float, now: float) -> "Headroom":
        """Make room for a job that takes so long."""
        return Headroom(seconds, now) if seconds >= self.left(now) else self


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether work may join the load, and in how many seconds it could."""

    alone: float  # seconds it takes when nothing else runs
    done_in: float  # seconds until everything, this work included, is done
    promised: float  # seconds in which it is done at the latest, if the costs are right
    idle: bool  # nobody else is there
    retry_after: float  # seconds until it would be admitted: 0 for now, infinity for never
    every: float  # seconds after which, from then on, there is room for another such job

    @property
    def admitted(self) -> bool:
        """Is there time for it now."""
        return self.retry_after == 0

    @property
    def possible(self) -> bool:
        """Would there be time for it on idle devices."""
        return math.isfinite(self.retry_after)


def admit(
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
    if load.is_nothing or least > seconds:
        wait = 0.0 if least <= seconds else math.inf
        return Admission(alone, least, least, load.is_nothing, wait, alone)
    done_in = load.decode_wait + (_background_in if background else _interactive_in)(
        load, rows, costs
    )
    together = added(load.everything, rows)
    in_hand = sum(costs.of(key, costs.largest(key)) for key, count in together.items() if count)
    free = 0.0
    if not background and load.is_mostly_short(costs):
        free = max(0.0, min(load.room, _MOST_ROOM * seconds) - alone)
    promised = done_in + in_hand
    late = max(0.0, load.doubt * (promised + free) - seconds)
    # What is promised part of the time has all of it as yet, if it is alone.
    promises = load.share if background else 1 - load.share if load.shared else 1.0
    has = promises if any((load.rows if background else load.background).values()) else 1.0
    wait = late * promises / has
    return Admission(alone, done_in, promised, idle=False, retry_after=wait, every=alone / has)


def _background_in(load: QueueLoad, rows: Mapping[Key, int], costs: CostModel) -> float:
    """Predict when bulk is done if it never has more than its share, and is served last at first.

    Those who were promised all of the time before it came have that.
    """
    served_last = load.computing(added(load.everything, rows), costs)
    return max(served_last, load.computing(added(load.background, rows), costs) / load.share)


def _interactive_in(load: QueueLoad, rows: Mapping[Key, int], costs: CostModel) -> float:
    """Predict when interactive work is done if bulk has all of its share."""
    seconds = load.computing(added(load.rows, rows), costs)
    return seconds / (1 - load.share) if load.shared else seconds


def added(rows: Mapping[Key, int], others: Mapping[Key, int]) -> dict[Key, int]:
    """Add numbers of rows up, by key."""
    return {key: rows.get(key, 0) + others.get(key, 0) for key in {*rows, *others}}


@dataclass(frozen=True, slots=True)
class SafetyFactor:
    """By what factor work takes longer than was promised, lately; never less than 1."""

    factor: float = 1.0

    def learnt(self, promised: float, took: float) -> "SafetyFactor":
        """Learn in how many seconds work was done: more at once, less slowly."""
        found = min(max(took / promised, 1.0), _MOST_DOUBT)
        rate = _RISE if found > self.factor else _FALL
        return SafetyFactor(self.factor + rate * (found - self.factor))


@dataclass(frozen=True, slots=True)
class RetrySlot:
    """When somebody who is refused may come again, and from when on the next one may."""

    at: float = -math.inf
    next: float = -math.inf

    def another(self, admission: Admission, now: float, doubt: float = 1.0) -> "RetrySlot":
        """Invite one more: when there will be room, and those before have been.

        These take `doubt` times what is predicted. Some never come back, and are no reason to
        have anybody wait for over a minute.
        """
        earliest = now + admission.retry_after
        at = min(max(earliest, self.next), earliest + _LONGEST)
        return RetrySlot(at, at + doubt * admission.every)
