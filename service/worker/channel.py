"""A connection to one thread of the worker, for one call at a time."""

import asyncio
import pickle
import socket
import time
from collections.abc import Callable

from service.errors import InferenceFailed, Interrupted
from service.worker.messages import LENGTH, Call, framed

EXITED = "the worker process has exited"
_FAILED = "the worker thread failed; retry the request"
_CHUNK = 65536  # bytes read at once


class Channel:
    """Sends calls over a connection and receives the responses; for one event loop."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._connection = connect()
        self._closing = False
        self.busy_since: float | None = None  # start of the call in flight, by time.monotonic()

    def close(self) -> None:
        """Close the connection, after the call in flight, if any."""
        self._closing = True
        if self.busy_since is None:
            self._connection.close()

    async def call(self, call: Call) -> object:
        """Send a call and return the response.

        Raises `InferenceFailed` if the connection breaks, or `Interrupted` if the channel is closed
        or the call did not reach the worker. If the worker thread failed but the process runs, the
        next call gets a new thread.
        """
        if self._closing:
            raise Interrupted(EXITED)
        self.busy_since = time.monotonic()
        failure: type[InferenceFailed] = Interrupted
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, framed(call))
            failure = InferenceFailed
            return await self._response()
        except (EOFError, OSError) as error:
            raise failure(self._reconnect()) from error
        finally:
            self.busy_since = None
            if self._closing:
                self._connection.close()

    def _reconnect(self) -> str:
        """Replace the broken connection, if the worker runs; returns why it broke."""
        self._connection.close()
        try:
            self._connection = self._connect()
        except InferenceFailed as error:
            return str(error)
        return _FAILED

    async def _response(self) -> object:
        loop = asyncio.get_running_loop()
        received = bytearray()
        while not _is_complete(received):
            chunk = await loop.sock_recv(self._connection, _CHUNK)
            if not chunk:
                raise EOFError
            received += chunk
        return pickle.loads(memoryview(received)[LENGTH.size :])  # noqa: S301 - our own process


def _is_complete(received: bytearray) -> bool:
    if len(received) < LENGTH.size:
        return False
    (length,) = LENGTH.unpack_from(received)
    return len(received) == LENGTH.size + int(length)
