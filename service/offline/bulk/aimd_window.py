"""The number of concurrent requests to a service: additive increase, multiplicative decrease."""

from dataclasses import dataclass, replace

FIRST = 4.0
MOST = 64.0


@dataclass(frozen=True, slots=True)
class AimdWindow:
    """A window of requests; refusals before `quiet_until` do not shrink it again."""

    window: float = FIRST
    quiet_until: float = 0.0  # seconds, by the clock of `refused`

    @property
    def most(self) -> int:
        """Requests that may be in flight."""
        return int(self.window)

    def answered(self) -> "AimdWindow":
        """Grow by one request per round trip."""
        return replace(self, window=min(MOST, self.window + 1 / self.window))

    def refused(self, now: float, seconds: float) -> "AimdWindow":
        """Halve for a refused request that is retried after `seconds`.

        Requests in flight with it are refused for the same reason, which counts once.
        """
        if now < self.quiet_until:
            return self
        return AimdWindow(max(1.0, self.window / 2), now + seconds)
