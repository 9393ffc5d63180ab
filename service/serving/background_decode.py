"""Bulk's pictures are decoded in rounds: no more of them at once than there are threads."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable


class Rounds:
    """Lets interactive pictures pass, and bulk ones wait where they are in nobody's way.

    `lead(n)` predicts for how many seconds the last of n more pictures waits to be decoded.
    """

    def __init__(self, lead: Callable[[int], float], threads: int) -> None:
        self._lead, self._threads = lead, threads
        self._free = asyncio.Semaphore(threads)
        self._held = 0  # bulk pictures that wait

    def lead(self, pictures: int, *, bulk: bool) -> float:
        """Predict for how many seconds the last of so many pictures waits to be decoded.

        Bulk waits anew whenever as many have been decoded as there are threads.
        """
        if not bulk:
            return self._lead(pictures)
        return math.ceil((self._held + pictures) / self._threads) * self._lead(self._threads)

    @contextlib.asynccontextmanager
    async def turn(self, *, bulk: bool) -> AsyncIterator[None]:
        """Wait until it is a picture's turn; it is over when this is left."""
        if not bulk:
            yield
            return
        self._held += 1
        try:
            await self._free.acquire()
        finally:
            self._held -= 1
        try:
            yield
        finally:
            self._free.release()
