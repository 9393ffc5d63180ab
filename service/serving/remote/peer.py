"""A peer: one end of a connection between two processes, for calls in both directions.

A message is a pickle with its length before it. Calls are answered in any order; a caller that is
cancelled cancels the call at the other end. When the connection ends, calls in flight fail and
calls being handled are cancelled.
"""

import asyncio
import itertools
import logging
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from service.errors import Interrupted, ServiceError
from service.worker.messages import LENGTH, framed, reported

logger = logging.getLogger(__name__)

Handlers = Mapping[str, Callable[..., Awaitable[Any]]]
Notices = Mapping[str, Callable[..., None]]

_BUFFER = 4 * 1024 * 1024  # bytes to read ahead: several images


@dataclass(frozen=True, slots=True)
class _Call:
    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Cancel:
    number: int


@dataclass(frozen=True, slots=True)
class _Notice:
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Result:
    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class _Failure:
    number: int
    error: Exception


class Peer:
    """Calls the process at the other end of a connection, and handles its calls.

    `handlers` answer calls by name; `notices`, which are not answered, are handled in the order in
    which they were sent, before any answer that was sent after them.
    """

    def __init__(
        self,
        handlers: Handlers,
        notices: Notices,
        ended: str,
    ) -> None:
        self._handlers, self._notices, self._ended = handlers, notices, ended
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._handling: dict[int, asyncio.Task[None]] = {}
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._open is not None

    @property
    def _open(self) -> asyncio.StreamWriter | None:
        """The writer, unless it is closed already: uvloop's raises `RuntimeError` then."""
        return None if self._writer is None or self._writer.is_closing() else self._writer

    @asynccontextmanager
    async def connected(self, connection: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
        """Use a connection until this context is left; the task is done when it ends."""
        reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=_BUFFER)
        reading = asyncio.create_task(self._read(reader))
        try:
            yield reading
        finally:
            reading.cancel()
            self._writer.close()
            self._writer = None
            for task in self._handling.values():
                task.cancel()
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(Interrupted(self._ended))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Receive messages until the connection ends."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                self._receive(pickle.loads(await reader.readexactly(length)))  # noqa: S301 - our own process

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a handler of the other process; raises its error.

        Raises `Interrupted` if the connection has ended or ends meanwhile.
        """
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            await self._send(_Call(number, method, arguments))
            return await answer
        except asyncio.CancelledError:
            self.write(_Cancel(number))
            raise
        finally:
            del self._calls[number]

    def notify(self, method: str, *arguments: object) -> None:
        """Send a notice, if the connection has not ended."""
        self.write(_Notice(method, arguments))

    def write(self, message: object) -> None:
        """Send a message, if the connection has not ended."""
        if writer := self._open:
            writer.write(framed(message))

    async def _send(self, message: object) -> None:
        """Send a message once the other process has room for it."""
        writer = self._open
        if writer is None:
            raise Interrupted(self._ended)
        self.write(message)
        try:
            await writer.drain()
        except OSError as error:
            raise Interrupted(self._ended) from error

    def _receive(self, message: object) -> None:
        match message:
            case _Call(number):
                self._handling[number] = asyncio.create_task(self._handle(message))
            case _Cancel(number):
                if task := self._handling.get(number):
                    task.cancel()
            case _Notice(method, arguments):
                self._notices[method](*arguments)
            case _Result(number, value):
                if (call := self._calls.get(number)) and not call.done():
                    call.set_result(value)
            case _Failure(number, error):
                if (call := self._calls.get(number)) and not call.done():
                    call.set_exception(error)

    async def _handle(self, call: _Call) -> None:
        answer: _Result | _Failure
        try:
            answer = _Result(call.number, await self._handlers[call.method](*call.arguments))
        except ServiceError as error:
            answer = _Failure(call.number, error)
        except Exception as error:
            logger.exception("%s failed", call.method)
            answer = _Failure(call.number, reported(error))
        finally:
            del self._handling[call.number]
        self.write(answer)
