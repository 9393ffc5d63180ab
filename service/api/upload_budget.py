"""The memory that all uploads in flight share, and each request's part of it."""

from dataclasses import dataclass
from typing import Self

from service.errors import Overloaded, TooLarge

COPIES = 2  # of a body in memory, as measured
BUSY_RETRY = 1.0  # seconds; how long uploads take is not predictable


@dataclass(slots=True)
class Budget:
    """Memory that all uploads in flight share.

    A byte of a body counts `copies` times: it is copied while the body is joined, and to the worker
    process.
    """

    limit: int
    copies: int = 1
    used: int = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest body that fits."""
        return self.limit // self.copies

    def share(self) -> "Share":
        """Make a request's share, which is released when its context is left."""
        return Share(self)


@dataclass(slots=True)
class Share:
    """The part of the budget that one request uses, until the context is left."""

    budget: Budget
    used: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def add(self, nbytes: int) -> None:
        """Use more; raises `Overloaded` if the budget is full, `TooLarge` if it is too small."""
        copied = self.budget.copies * nbytes
        limit = self.budget.limit
        if self.used + copied > limit:
            raise TooLarge(
                f"the body and its copies are over {limit} bytes, the memory for uploads"
            )
        if self.budget.used + copied > limit:
            raise Overloaded(
                f"uploads in flight fill their {limit} bytes of memory", retry_after=BUSY_RETRY
            )
        self.budget.used += copied
        self.used += copied

    def release(self) -> None:
        """Give all of it back."""
        self.budget.used -= self.used
        self.used = 0
