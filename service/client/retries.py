"""Whether a failed request is retried, and after how many seconds."""

from dataclasses import dataclass

from service.client.errors import ClientError, TimedOut, Unavailable, Unreachable

FIRST_DELAY = 0.1  # seconds, without a Retry-After
MAX_DELAY = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Failures:
    """A call's failures so far: in total, and those that allow one retry only."""

    total: int = 0
    ambiguous: int = 0

    def after(self, error: ClientError) -> "Failures":
        """Count one more."""
        return Failures(self.total + 1, self.ambiguous + is_ambiguous(error))


def is_ambiguous(error: ClientError) -> bool:
    """Return whether the request itself may have caused the failure, after it was sent.

    Classification is idempotent, so a retry is harmless; but an image that crashes a server
    should not be sent to all replicas.
    """
    if isinstance(error, Unreachable):
        return error.disconnected
    return isinstance(error, TimedOut) and error.status is not None


def delay(error: ClientError, failures: Failures, jitter: float) -> float | None:
    """Return the seconds until the retry; None for no retry.

    `failures` are those before this one; `jitter` is from 0 to 1 and spreads the retries of
    clients that failed at the same time.
    """
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return max(error.retry_after, _backoff(0, jitter))  # 0 would be a busy loop
    if is_ambiguous(error):
        is_retried = failures.ambiguous == 0
    else:
        is_retried = isinstance(error, Unavailable) or (
            isinstance(error, Unreachable) and not error.is_permanent
        )
    return _backoff(failures.total, jitter) if is_retried else None


def _backoff(failures: int, jitter: float) -> float:
    longest = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures, 16))
    return longest * (1 + jitter) / 2
