"""Bulk's images are decoded in rounds: no more of them at once than there are threads."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable


class DecodeTurns:
    """Lets interactive images pass, and bulk ones wait where they are in nobody's way.

    `decode_wait(n)` predicts for how many seconds the last of n more images waits to be decoded.
    """

    def __init__(self, decode_wait: Callable[[int], float], threads: int) -> None:
        self._lead, self._threads = decode_wait, threads
        self._free = asyncio.Semaphore(threads)
        self._held = 0  # bulk images that wait

    def decode_wait(self, images: int, *, background: bool) -> float:
        """Predict for how many seconds the last of so many images waits to be decoded.

        Bulk waits anew whenever as many have been decoded as there are threads.
        """
        if not background:
            return self._lead(images)
        return math.ceil((self._held + images) / self._threads) * self._lead(self._threads)

    @contextlib.asynccontextmanager
    async def turn(self, *, background: bool) -> AsyncIterator[None]:
        """Wait until it is an image's turn; it is over when this is left."""
        if not background:
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
