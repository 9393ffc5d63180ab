"""A timeout of a connection."""

import asyncio
from collections.abc import Callable


class Timeout:
    """Call back after some seconds, unless cancelled."""

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, callback: Callable[[], None]) -> None:
        """Start it, unless it is running."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._fire, callback)

    def cancel(self) -> None:
        """Stop it, if it is running."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self, callback: Callable[[], None]) -> None:
        self._handle = None
        callback()
