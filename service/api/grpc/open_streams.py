"""How many calls may stay open: they would take the place of those that infer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import StatusCode, aio


class Streams:
    """Counts the open streams of a kind, and refuses those over a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @asynccontextmanager
    async def one(self, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        """Be one of them, or abort the call."""
        if self._open >= self._most:
            await context.abort(
                StatusCode.RESOURCE_EXHAUSTED, f"over {self._most} such streams are open"
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
