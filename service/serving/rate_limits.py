"""Rate limits: requests counted in fixed windows on a monotonic clock.

A window begins with its first request, so that a refused client gets the exact time of its end.
The counts are in the core's process, so they hold for all API processes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PATTERN = r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$"

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many requests in a window, which is named by its length."""

    requests: int
    window: str

    @property
    def seconds(self) -> int:
        """The window's length."""
        return _SECONDS[self.window]


def parse(text: str) -> Limit:
    """Parse a limit of the form `PATTERN`: 20/second, 100000/day."""
    requests, _, window = text.partition("/")
    return Limit(int(requests), window)


@dataclass(slots=True)
class _Window:
    limit: Limit
    used: int = 0
    ends: float = -math.inf  # a monotonic time


@dataclass(frozen=True, slots=True)
class Left:
    """What a limit leaves: requests, and the seconds until its window ends."""

    limit: Limit
    requests: int
    seconds: float


class Quota:
    """What a key has left of each of its limits; `now` is a monotonic time."""

    def __init__(self, limits: Iterable[Limit]) -> None:
        self._windows = [_Window(limit) for limit in limits]

    def take(self, now: float) -> float:
        """Count a request and give 0, or give the seconds until one is admitted."""
        wait = 0.0
        for window in self._windows:
            if window.ends <= now:
                window.used, window.ends = 0, now + window.limit.seconds
            if window.used == window.limit.requests:
                wait = max(wait, window.ends - now)
        if not wait:
            for window in self._windows:
                window.used += 1
        return wait

    def left(self, now: float) -> list[Left]:
        """Give what each limit leaves, just after a request was counted or refused."""
        return [
            Left(
                window.limit,
                window.limit.requests - window.used,
                min(window.limit.seconds, window.ends - now),  # (now + a) - now may be over a
            )
            for window in self._windows
        ]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a key has left after a request, and the seconds until one is admitted: 0 if it was."""

    wait: float
    left: Sequence[Left]


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas of all keys: a key keeps its own for as long as its limits are the same."""

    _quotas: dict[tuple[str, tuple[Limit, ...]], Quota] = field(default_factory=dict)

    def take(self, key: str, limits: tuple[Limit, ...], now: float) -> Usage:
        """Count a request of a key, by its name, unless a limit is reached."""
        quota = self._quotas.setdefault((key, limits), Quota(limits))
        return Usage(quota.take(now), quota.left(now))
