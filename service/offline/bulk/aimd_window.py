"""How many requests at a time a service takes: one more with every round, half when it refuses."""

from dataclasses import dataclass, replace

FIRST = 4.0
MOST = 64.0


@dataclass(frozen=True, slots=True)
class AimdWindow:
    """What is known by now; `quiet_until` is when the next refusal will be news."""

    window: float = FIRST
    quiet_until: float = 0.0  # seconds, by the caller's clock

    @property
    def most(self) -> int:
        """Requests that may be in flight."""
        return int(self.window)

    def answered(self) -> "AimdWindow":
        """Learn that a request was answered."""
        return replace(self, window=min(MOST, self.window + 1 / self.window))

    def refused(self, now: float, seconds: float) -> "AimdWindow":
        """Learn that one was refused and comes again in so many seconds.

        Those that were in flight with it are refused for the same reason, which counts once.
        """
        if now < self.quiet_until:
            return self
        return AimdWindow(max(1.0, self.window / 2), now + seconds)
