"""Whether to ask again, and when: decisions without a clock."""

from dataclasses import dataclass

from service.client.errors import ClientError, TimedOut, Unavailable, Unreachable

FIRST_PAUSE = 0.1  # seconds, where nobody says when to come again
LONGEST_PAUSE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Failures:
    """How often a call has failed: in all, and in ways that are tried once more only."""

    all: int = 0
    doubtful: int = 0

    def after(self, error: ClientError) -> "Failures":
        """Count one more."""
        return Failures(self.all + 1, self.doubtful + is_doubtful(error))


def is_doubtful(error: ClientError) -> bool:
    """Tell whether the request may itself be what made it fail, after it had been sent.

    Classifying changes nothing, so asking again is harmless; but an image that ends a server
    should not be shown to all of them.
    """
    if isinstance(error, Unreachable):
        return error.hung_up
    return isinstance(error, TimedOut) and error.status is not None


def pause(error: ClientError, failures: Failures, chance: float) -> float | None:
    """Say how many seconds to wait before asking again; None: do not.

    `failures` are those before this one; `chance` is from 0 to 1, so that not all who were
    turned away by nobody in particular come back at once.
    """
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return max(error.retry_after, _backoff(0, chance))  # 0 would be to ask without a pause
    if is_doubtful(error):
        may = failures.doubtful == 0
    else:
        may = isinstance(error, Unavailable) or (
            isinstance(error, Unreachable) and not error.is_final
        )
    return _backoff(failures.all, chance) if may else None


def _backoff(failures: int, chance: float) -> float:
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 16))
    return longest * (1 + chance) / 2
