"""Capacity planning: how many replicas a rate of requests needs, by simulating one of them.

Requests are distributed at random, so each replica's share is a Poisson process.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from service.bench.capacity.replica_model import Replica, Rows
from service.bench.capacity.simulator import poisson, simulate

SHARE = 0.99  # of all requests, including refused ones, that has to meet the objective
HELPS = 0.05  # of the 99th percentile: the least reduction that is worth more replicas
_BUSY = 0.95  # utilisation above which a stage is overloaded
_ARRIVALS = 5000  # at the simulated replica
_MOST = 1000  # times the least replicas, at which to give up


@dataclass(frozen=True, slots=True)
class Traffic:
    """A rate of requests and its latency objective."""

    rate: float  # requests a second, at random moments
    objective: float  # seconds, for `SHARE` of all requests
    deadline: float  # seconds; the timeout of a request


@dataclass(frozen=True, slots=True)
class Prediction:
    """The figures of a number of replicas; p50 and p99 in seconds, None without responses."""

    replicas: int
    utilisation: Mapping[str, float]  # by stage, the share of its time that it is busy
    p50: float | None
    p99: float | None
    refused: float  # share of all requests, including late ones
    met: bool  # the objective


@dataclass(frozen=True, slots=True)
class Plan:
    """The replicas that are needed, and predictions for fewer and more."""

    traffic: Traffic
    alone: float  # seconds of a request without others
    needed: int | None  # None if no number meets the objective
    enough: int  # replicas beyond which more hardly help
    predictions: tuple[Prediction, ...]


Predict = Callable[[int], Prediction]


def plan(replica: Replica, rows: Rows, traffic: Traffic) -> Plan:
    """Plan the replicas for traffic of requests of this size."""
    predict = cache(lambda count: _predict(replica, rows, traffic, count))
    alone = simulate(replica, rows, [0.0], deadline=math.inf).latencies[0]
    least = max(1, math.ceil(traffic.rate * replica.least(rows)))
    met = alone <= traffic.objective
    needed = search(lambda count: predict(count).met, least, _MOST * least) if met else None
    counts = [*worthwhile(predict, needed or least)]
    fewer = {least, needed - 1} if needed and needed > least else set()
    predictions = tuple(predict(count) for count in sorted({*fewer, *counts}))
    return Plan(traffic, alone, needed, counts[-2], predictions)


def _predict(replica: Replica, rows: Rows, traffic: Traffic, count: int) -> Prediction:
    arrivals = poisson(traffic.rate / count, _ARRIVALS)
    outcome = simulate(replica, rows, arrivals, deadline=traffic.deadline)
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
    """Bisect for the least count that meets a monotonic condition; None if none up to `most`."""
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
    """Return the step to the next count: a tenth."""
    return max(1, replicas // 10)


def worthwhile(predict: Predict, first: int) -> Iterator[int]:
    """Yield counts from `first` to the first that hardly helps."""
    count, helps = first, True
    yield count
    while helps:
        more = count + step(count)
        helps = _helps(predict(count), predict(more))
        count = more
        yield count


def _helps(fewer: Prediction, more: Prediction) -> bool:
    if max(fewer.utilisation.values()) > _BUSY:
        return True
    if fewer.p99 is None or more.p99 is None:
        return False
    return more.p99 <= (1 - HELPS) * fewer.p99
