"""A limit of open streams, which count against the server's calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import StatusCode, aio


class Streams:
    """Counts open streams and refuses those over the limit."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._open = 0

    @asynccontextmanager
    async def stream(self, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        """Count a stream while it is open, or abort its call."""
        if self._open >= self._max_streams:
            await context.abort(
                StatusCode.RESOURCE_EXHAUSTED, f"over {self._max_streams} such streams are open"
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
