"""Cost model: measured seconds of each batch, and the cheapest batches for some rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

_RISE, _FALL = 0.3, 0.05  # of the way to the observed seconds
_MAX_RATIO = 4  # of observed to predicted seconds: a slower batch counts as this


class Key(NamedTuple):
    """The key by which rows are batched: only rows of one key share a batch."""

    member: int  # which model of the ensemble
    side: int  # pixels of a view
    maps: bool = False  # whether class activation maps are computed


class CostCurve(Protocol):
    """Predicted seconds of a device's batches by their number of rows; a frozen value."""

    @property
    def sizes(self) -> Sequence[int]:
        """Batch sizes that represent the curve, in ascending order."""
        ...

    @property
    def largest(self) -> int:
        """The most rows in one batch."""
        ...

    def fitting(self, rows: int) -> int:
        """Return the cheapest batch size that holds so many rows."""
        ...

    def seconds(self, size: int) -> float:
        """Predict one batch of a size."""
        ...

    def total(self, rows: int) -> float:
        """Predict so many rows, in the cheapest batches."""
        ...

    def choose(self, rows: int, within: float = math.inf) -> int:
        """Return the largest of the cheapest batches for so many rows, each within some seconds.

        0 if no batch is that quick.
        """
        ...

    def below(self, size: int) -> "CostCurve":
        """Remove this size and all above it, but never the smallest."""
        ...

    def observed(self, size: int, seconds: float) -> "CostCurve":
        """Move towards the seconds that a batch took: up quickly, down slowly.

        Predictions become promises, so they have to be mostly an upper bound.
        """
        ...


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Batches of any size up to `largest`: `fixed` seconds, and `each` for a row.

    That is how a CPU computes. `slower` is the present factor over what was measured.
    """

    fixed: float
    each: float
    largest: int
    slower: float = 1.0

    @classmethod
    def fit(cls, measured: Mapping[int, float], largest: int) -> "LinearCost":
        """Fit seconds by batch size, of at least one size: by least squares of relative errors."""
        if len(measured) == 1:
            [(size, seconds)] = measured.items()
            return cls(0.0, seconds / size, largest)
        weights = {size: 1 / seconds**2 for size, seconds in measured.items()}
        total = sum(weights.values())
        mean_size = sum(size * weight for size, weight in weights.items()) / total
        mean = sum(measured[size] * weight for size, weight in weights.items()) / total
        slope = sum(
            weight * (size - mean_size) * (measured[size] - mean)
            for size, weight in weights.items()
        ) / sum(weight * (size - mean_size) ** 2 for size, weight in weights.items())
        each = min(max(slope, 0.0), mean / mean_size)  # neither part of a cost is below zero
        return cls(max(0.0, mean - each * mean_size), each, largest)

    @property
    def sizes(self) -> Sequence[int]:
        """The smallest, a middle and the largest size."""
        return sorted({1, math.isqrt(self.largest), self.largest})

    def fitting(self, rows: int) -> int:
        """Return the number of rows itself: nothing is padded."""
        return rows

    def seconds(self, size: int) -> float:
        """Predict one batch of a size."""
        return self.slower * (self.fixed + self.each * size)

    def total(self, rows: int) -> float:
        """Predict so many rows, in as few batches as can be."""
        whole, rest = divmod(rows, self.largest)
        return whole * self.seconds(self.largest) + (self.seconds(rest) if rest else 0.0)

    def choose(self, rows: int, within: float = math.inf) -> int:
        """Return as many of the rows as are done in time."""
        most = min(rows, self.largest)
        if self.seconds(most) <= within:
            return most
        if self.seconds(1) > within:
            return 0
        return max(1, int((within / self.slower - self.fixed) / self.each))  # floats are rounded

    def below(self, size: int) -> "LinearCost":
        """Remove this size and all above it, but never the smallest."""
        return replace(self, largest=max(1, min(self.largest, size - 1)))

    def observed(self, size: int, seconds: float) -> "LinearCost":
        """Move all sizes by the same factor: what makes one slow makes the others slow.

        Never beyond `_MAX_RATIO` times what was measured: a batch that is predicted to be too
        slow for any deadline would never be run, and so measured, again.
        """
        ratio = min(seconds / (self.fixed + self.each * size), _MAX_RATIO)
        rate = _RISE if ratio > self.slower else _FALL
        return replace(self, slower=self.slower + rate * (ratio - self.slower))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Batches of some sizes only, each measured at the start and since; others are padded.

    That is how a GPU computes, by a CUDA graph that was recorded for each size.
    """

    measured: Mapping[int, float]
    at_first: Mapping[int, float] | None = None  # as `measured` if not given

    @property
    def sizes(self) -> Sequence[int]:
        """All sizes."""
        return sorted(self.measured)

    @property
    def largest(self) -> int:
        """The largest bucket."""
        return max(self.measured)

    def fitting(self, rows: int) -> int:
        """Return the cheapest bucket that holds so many rows."""
        return min((size for size in self.measured if size >= rows), key=self.measured.__getitem__)

    def seconds(self, size: int) -> float:
        """Predict one batch of a size."""
        return self.measured[size]

    def total(self, rows: int) -> float:
        """Predict so many rows, by their cheapest cover."""
        return cover(tuple(self.measured.items()), rows).seconds

    def choose(self, rows: int, within: float = math.inf) -> int:
        """Return the largest bucket of the cheapest cover by those that are quick enough."""
        quick = tuple((size, took) for size, took in self.measured.items() if took <= within)
        return cover(quick, rows).largest if quick else 0

    def below(self, size: int) -> "Buckets":
        """Remove this size and all above it, but never the smallest."""
        smallest = min(self.measured)
        fewer = {s: took for s, took in self.measured.items() if s < size or s == smallest}
        return Buckets(fewer, self.at_first or self.measured)

    def observed(self, size: int, seconds: float) -> "Buckets":
        """Move one bucket; the others fall slowly to what they took at first.

        A bucket that is predicted to be too slow would otherwise never be run, and so measured,
        again. A removed bucket stays removed.
        """
        if size not in self.measured:
            return self
        at_first = self.at_first or self.measured
        buckets = {
            other: took - _FALL * max(0.0, took - at_first[other])
            for other, took in self.measured.items()
        }
        before = self.measured[size]
        change = min(seconds, _MAX_RATIO * before) - before
        buckets[size] = before + change * (_RISE if change > 0 else _FALL)
        return Buckets(buckets, at_first)


@dataclass(frozen=True, slots=True)
class CostModel:
    """The cost curve of each key."""

    curves: Mapping[Key, CostCurve]

    def largest(self, key: Key) -> int:
        """Return the most rows in one batch."""
        return self.curves[key].largest

    def seconds(self, key: Key, size: int) -> float:
        """Predict one batch of a size."""
        return self.curves[key].seconds(size)

    def of(self, key: Key, rows: int) -> float:
        """Predict the seconds for `rows` rows of one key, in the cheapest batches."""
        return self.curves[key].total(rows)

    def total(self, rows: Mapping[Key, int]) -> float:
        """Predict the seconds for the rows of several keys."""
        return sum(self.of(key, count) for key, count in rows.items())

    def longest(self, rows: Mapping[Key, int]) -> float:
        """Predict the seconds of the longest batch that these rows may be in."""
        fitting = {key: min(count, self.largest(key)) for key, count in rows.items()}
        return max((self.of(key, count) for key, count in fitting.items()), default=0.0)

    def rate(self, key: Key) -> float:
        """Return the most rows a second that one device computes."""
        curve = self.curves[key]
        return max(size / curve.seconds(size) for size in curve.sizes)

    def below(self, key: Key, size: int) -> "CostModel":
        """Remove batches of this size and above, but never the smallest."""
        return self._with(key, self.curves[key].below(size))

    def observed(self, key: Key, size: int, seconds: float) -> "CostModel":
        """Update with the seconds that a batch took."""
        return self._with(key, self.curves[key].observed(size, seconds))

    def _with(self, key: Key, curve: CostCurve) -> "CostModel":
        return CostModel({**self.curves, key: curve})


@dataclass(frozen=True, slots=True)
class Cover:
    """Buckets that together hold some rows: their cost, and the largest of them."""

    seconds: float = 0.0
    largest: int = 0


def cover(buckets: tuple[tuple[int, float], ...], rows: int) -> Cover:
    """Find the cheapest buckets, given as (size, seconds), that hold `rows` rows."""
    sizes = dict(buckets)
    best = min(sizes, key=lambda size: sizes[size] / size)
    # Rows beyond the largest bucket fill buckets of the best size; the rest is in the table.
    whole = max(0, math.ceil((rows - max(sizes)) / best))
    rest = _covers(buckets)[max(0, rows - whole * best)]
    return Cover(whole * sizes[best] + rest.seconds, max(rest.largest, best if whole else 0))


@lru_cache(maxsize=256)
def _covers(buckets: tuple[tuple[int, float], ...]) -> tuple[Cover, ...]:
    """Find the cheapest cover for every number of rows up to the largest bucket."""
    covers = [Cover()]
    for rows in range(1, max(size for size, _ in buckets) + 1):
        covers.append(
            min(
                (
                    Cover(seconds + rest.seconds, max(size, rest.largest))
                    for size, seconds in buckets
                    for rest in (covers[max(0, rows - size)],)
                ),
                key=lambda cover: (cover.seconds, cover.largest),
            )
        )
    return tuple(covers)
