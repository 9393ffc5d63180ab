"""When a worker that ended is restarted: decisions without clock, event loop or I/O."""

from dataclasses import dataclass, replace

MAX_ENDS = 5  # within a minute, after which the worker is not restarted
_MINUTE = 60.0  # seconds
_MAX_DELAY = 8.0  # seconds


@dataclass(frozen=True, slots=True)
class Restarts:
    """The times of the worker's last ends, by `time.monotonic()`."""

    first_delay: float = 0.5  # seconds before the first restart
    ends: tuple[float, ...] = ()

    def ended(self, now: float) -> "Restarts":
        """Add an end; those over a minute ago are removed."""
        return replace(self, ends=(*(end for end in self.ends if now - end < _MINUTE), now))

    @property
    def are_too_many(self) -> bool:
        """Whether the worker has ended too often to be restarted."""
        return len(self.ends) >= MAX_ENDS

    @property
    def delay(self) -> float:
        """Seconds to wait before the restart: twice as long each time, up to 8."""
        return min(self.first_delay * 2.0 ** (len(self.ends) - 1), _MAX_DELAY)
