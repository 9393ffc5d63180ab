"""What each batch takes on a device, by measurement, and the cheapest way to run some rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

_RISE, _FALL = 0.3, 0.05  # of the way to what was observed
_SURPRISE = 4  # times what was predicted; one batch that took longer says no more than that


class Key(NamedTuple):
    """What rows must share to go in one batch."""

    member: int  # which model of the ensemble
    side: int  # pixels of a view
    maps: bool = False  # are class activation maps wanted


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

    def below(self, key: Key, size: int) -> "Costs":
        """Forget the buckets of this size and above, or all but the smallest."""
        smallest = min(self.seconds[key])
        fewer = {s: took for s, took in self.seconds[key].items() if s < size or s == smallest}
        return Costs({**self.seconds, key: fewer}, self.at_first or self.seconds)

    def observed(self, key: Key, size: int, seconds: float) -> "Costs":
        """Move one bucket's cost towards what it took just now: up quickly, down slowly.

        What is predicted is promised, so it has to be what a batch takes at most, mostly. The
        key's other buckets forget slowly that they were slow: one that is predicted to be too
        slow to be run would never be measured again. A bucket that was forgotten stays so.
        """
        if size not in self.seconds[key]:
            return self
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
