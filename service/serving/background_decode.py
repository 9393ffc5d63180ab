"""Limits how many images of background requests are decoded at once."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext


class DecodeTurns:
    """Decodes interactive images at once, and at most `threads` background ones at a time.

    `decode_wait(n)` predicts for how many seconds the last of n more images waits to be decoded.
    """

    def __init__(self, decode_wait: Callable[[int], float], threads: int) -> None:
        self._decode_wait, self._threads = decode_wait, threads
        self._free = asyncio.Semaphore(threads)
        self._waiting = 0  # background images

    def decode_wait(self, images: int, *, background: bool) -> float:
        """Predict for how many seconds the last of so many images waits to be decoded.

        Background images are decoded in rounds of as many as there are threads, and each round
        waits anew.
        """
        if not background:
            return self._decode_wait(images)
        rounds = math.ceil((self._waiting + images) / self._threads)
        return rounds * self._decode_wait(self._threads)

    def turn(self, *, background: bool) -> AbstractAsyncContextManager[None]:
        """Wait until an image may be decoded, which is done when this context is left."""
        return self._background_turn() if background else nullcontext()

    @asynccontextmanager
    async def _background_turn(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
