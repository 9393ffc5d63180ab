"""How many requests in how long, counted in windows on a clock that never jumps.

A window begins with its first request and has an end, so that who is refused can be told exactly
when to come again. Two numbers a limit are all that is kept; they are of this process alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

PATTERN = r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$"

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many requests in a window, which is named by its length."""

    requests: int
    window: str

    @property
    def seconds(self) -> int:
        """How long the window is."""
        return _SECONDS[self.window]


def parse(text: str) -> Limit:
    """Understand what `PATTERN` describes: 20/second, 100000/day."""
    requests, _, window = text.partition("/")
    return Limit(int(requests), window)


@dataclass(slots=True)
class _Window:
    limit: Limit
    used: int = 0
    ends: float = -math.inf  # on the clock of whoever asks


@dataclass(frozen=True, slots=True)
class Left:
    """What a limit leaves: requests, and the seconds until there are all of them again."""

    limit: Limit
    requests: int
    seconds: float


class Quota:
    """What one caller may still ask, by each of its limits; `now` is a monotonic time."""

    def __init__(self, limits: Iterable[Limit]) -> None:
        self._windows = [_Window(limit) for limit in limits]

    def take(self, now: float) -> float:
        """Count a request; gives 0, or the seconds until one is let in, and counts nothing."""
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
        """Tell what each limit leaves, just after a request was counted or refused."""
        return [
            Left(one.limit, one.limit.requests - one.used, min(one.limit.seconds, one.ends - now))
            for one in self._windows  # floats: (now + a) - now may be over a
        ]
