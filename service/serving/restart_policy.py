"""When a worker that ended is started again: decisions, without clock, loop or I/O."""

from dataclasses import dataclass, replace

MOST = 5  # ends within a minute, after which it is not started again
_MINUTE = 60.0  # seconds
_LONGEST = 8.0  # seconds before it is started again


@dataclass(frozen=True, slots=True)
class Restarts:
    """When the worker ended lately, by `time.monotonic()`."""

    first_delay: float = 0.5  # seconds before it is started again the first time
    ends: tuple[float, ...] = ()

    def ended(self, now: float) -> "Restarts":
        """Note that it ended; what was over a minute ago is forgotten."""
        return replace(self, ends=(*(at for at in self.ends if now - at < _MINUTE), now))

    @property
    def are_too_many(self) -> bool:
        """Tell whether it is no use to start it again."""
        return len(self.ends) >= MOST

    @property
    def delay(self) -> float:
        """Seconds to wait before it is started again: twice as long each time."""
        return min(self.first_delay * 2.0 ** (len(self.ends) - 1), _LONGEST)
