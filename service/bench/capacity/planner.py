"""How many replicas answer a rate of requests in time, by simulating one of them.

Requests are spread at random, so each replica has its share of them as a Poisson process.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from service.bench.capacity.replica_model import JobSpec, Replica
from service.bench.capacity.simulator import poisson, simulate

SHARE = 0.99  # of all requests, those that are refused included, that the objective is for
HELPS = 0.05  # of the 99th percentile: what more replicas have to take off it to be any help
_BUSY = 0.95  # of its time: a stage that is busier than this cannot keep up
_ARRIVALS = 5000  # at the simulated replica
_MOST = 1000  # times as many replicas as are all at work: what is late there is late anywhere


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes and what is wanted: a rate, and the seconds that an answer may take."""

    rate: float  # requests a second, at random moments
    objective: float  # seconds, for `SHARE` of all requests
    deadline: float  # seconds; what a request is admitted by


@dataclass(frozen=True, slots=True)
class Prediction:
    """What so many replicas do; p50 and p99 in seconds, None where nothing is answered."""

    replicas: int
    utilisation: Mapping[str, float]  # by stage, the share of its time that it is busy
    p50: float | None
    p99: float | None
    refused: float  # share of all requests, those included that are answered too late
    met: bool  # the objective


@dataclass(frozen=True, slots=True)
class Plan:
    """How many replicas are needed, and what fewer and more of them do."""

    traffic: Traffic
    alone: float  # seconds that a request takes when there is no other
    needed: int | None  # None if no number of them meets the objective
    enough: int  # replicas that more than these hardly help
    predictions: tuple[Prediction, ...]


Predict = Callable[[int], Prediction]


def plan(replica: Replica, spec: JobSpec, traffic: Traffic) -> Plan:
    """Find out how many such replicas are needed for requests that bring so much each."""
    predict = cache(lambda count: _predict(replica, spec, traffic, count))
    alone = simulate(replica, spec, [0.0], deadline=math.inf).latencies[0]
    least = max(1, math.ceil(traffic.rate * replica.least(spec)))
    met = alone <= traffic.objective
    needed = search(lambda count: predict(count).met, least, _MOST * least) if met else None
    counts = [*worthwhile(predict, needed or least)]
    fewer = {least, needed - 1} if needed and needed > least else set()
    predictions = tuple(predict(count) for count in sorted({*fewer, *counts}))
    return Plan(traffic, alone, needed, counts[-2], predictions)


def _predict(replica: Replica, spec: JobSpec, traffic: Traffic, count: int) -> Prediction:
    arrivals = poisson(traffic.rate / count, _ARRIVALS)
    outcome = simulate(replica, spec, arrivals, deadline=traffic.deadline)
    answered = len(outcome.latencies)
    return Prediction(
        count,
        outcome.utilisation._asdict(),
        p50=outcome.quantile(0.5) if answered else None,
        p99=outcome.quantile(0.99) if answered else None,
        refused=1 - answered / outcome.arrived,
        met=outcome.within(traffic.objective) >= SHARE,
    )


def search(meets: Callable[[int], bool], least: int, most: int) -> int | None:
    """Find the fewest that meet what more than them meet, too; None if that is far over `most`."""
    low, high = least - 1, least
    while not meets(high):
        if high >= most:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def step(replicas: int) -> int:
    """Say how many more to look at next: one in ten."""
    return max(1, replicas // 10)


def worthwhile(predict: Predict, first: int) -> Iterator[int]:
    """Count on from `first` as long as more replicas help, and to the first that do not."""
    count, helps = first, True
    yield count
    while helps:
        more = count + step(count)
        helps = _helps(predict(count), predict(more))
        count = more
        yield count


def _helps(few: Prediction, more: Prediction) -> bool:
    if max(few.utilisation.values()) > _BUSY:
        return True
    if few.p99 is None or more.p99 is None:
        return False
    return more.p99 <= (1 - HELPS) * few.p99
