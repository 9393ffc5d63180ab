"""gRPC messages, received only when there is memory for them.

A message's size is known once it has arrived: until then the largest size is reserved of the memory
for uploads, at most half of which is reserved so; the rest is left to HTTP.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.api.upload_budget import Budget
from service.errors import BodyTimeout, MalformedRequest
from service.settings import Settings

_COPIES = 2  # of a message beside those of a body: encoded, and parsed


class Receiving:
    """Receives a few messages at a time; other calls wait."""

    def __init__(self, budget: Budget, settings: Settings) -> None:
        self._budget = budget
        self._largest = min(settings.max_body_bytes, budget.largest)
        self._seconds = settings.upload_timeout_seconds
        self._turns = asyncio.Semaphore(max(1, budget.largest // 2 // self._largest))

    @asynccontextmanager
    async def message(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Give a call's one message, and hold its share of the budget until left.

        Raises `Overloaded`, `TooLarge`, `BodyTimeout` or `MalformedRequest`.
        """
        with self._budget.share() as share:
            try:
                async with asyncio.timeout(self._seconds), self._turns:
                    share.add(self._largest)
                    data = await anext(aiter(messages))
            except TimeoutError:
                raise BodyTimeout(
                    f"the message did not arrive within {self._seconds:g} s; send it again"
                ) from None
            except StopAsyncIteration:
                raise MalformedRequest("the call has no message") from None
            share.release()
            share.add(_COPIES * len(data))
            yield data
