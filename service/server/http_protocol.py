"""A caller's connection, bounded: whatever uvicorn's own would wait for without end, ends here.

A connection may end the process's patience in four ways, and each has its bound: it sends no
head, or a long one (`Bounds`); it does not take its answer (the same); there are too many of it
(`Connections`). How long a body may be, and take, is for `service.api.uploads`.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import httptools
from fastapi import Request
from uvicorn._types import ASGI3Application  # of the method that is overridden
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api import problem_details
from service.api.middleware import request_log, security_headers
from service.errors import HeaderTimeout, HeadTooLarge, MalformedRequest, ServiceError
from service.server.connection_limits import Bounds, Ports
from service.serving.metrics.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_HEADERS = 100  # as many as Apache and gunicorn take
_SLICE = 16 * 1024  # bytes parsed at once; what they ask for is answered before more is parsed
_LINGER = 2.0  # seconds a caller has to read why it was refused; closing at once could lose it
_HALF_OPEN = 0.1  # seconds for what is being answered when the caller has shut its side


class _Flow(FlowControl):
    """uvicorn's flow control, which whoever waits for a body cannot make read on when it is full.

    Then nothing is read before what was is parsed.
    """

    is_full = False

    def resume_reading(self) -> None:
        if not self.is_full:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, within bounds."""

    # A dictionary of over 30 attributes, with uvicorn's own, would be a slow and a large one.
    __slots__ = (
        *("_answering", "_bounds", "_connections", "_in_head", "_in_message", "_loose"),
        *("_metrics", "_ports", "_reading", "_refusal", "_unread", "_writing"),
    )
    flow: _Flow

    def __init__(  # noqa: PLR0913 - the last four are uvicorn's, by name
        self,
        bounds: Bounds,
        ports: Ports,
        metrics: Metrics,
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.ws_protocol_class = None
        self._bounds, self._ports, self._metrics = bounds, ports, metrics
        self._connections = ports.main
        self._answering: RequestResponseCycle | None = None
        self._in_message = False  # since its first byte
        self._in_head = False
        self._loose = 0  # bytes since the last that were of a whole head or of a body
        self._unread = b""  # bytes that wait until what came before them is answered
        self._refusal: bytes | None = None  # the last that will be sent; what comes is forgotten
        self._reading: asyncio.TimerHandle | None = None  # ends the wait for what the caller owes
        self._writing: asyncio.TimerHandle | None = None  # ends the wait until it takes an answer

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, if there is room."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._connections = self._ports.of(self.server)
        if self._connections.admit(self):
            self._await_reading()
        else:
            self._metrics.closed("full")
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; whoever is at work for the caller is told that it has gone."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        self._connections.leave(self)
        self._unread = b""
        self.pipeline.clear()
        if self._answering is not None:
            _tell_gone(self._answering)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless something before it has to be answered first."""
        if self._refusal is None:
            self._read(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own type
        """Give what is being answered a moment, if the request was whole, and close.

        Who has shut its side cannot be told from who has left, and is not worked for.
        """
        if self._answering is None or self._in_message or self.scheme == "https":
            return None
        self.loop.call_later(_HALF_OPEN, self._close)
        return True

    def pause_writing(self) -> None:
        """Give the caller its time to take what was sent."""
        super().pause_writing()
        self._await_writing()

    def resume_writing(self) -> None:
        """Note that it has, but for the rest that a closed connection still holds."""
        super().resume_writing()
        # Whether one that closes is ever resumed is a matter of moments.
        if self._writing is not None and not self.transport.is_closing():  # pragma: no branch
            self._writing.cancel()
            self._writing = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Note the first byte of a head."""
        super().on_message_begin()
        self._in_message = self._in_head = True

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head is too large."""
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge(f"the request has over {MAX_HEADERS} headers; send fewer")
        most = self._bounds.header_bytes
        if self._loose > most and _size(self.url, self.headers) > most:
            raise self._too_large()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._in_head = False
            self.headers = []  # of what follows the body: nobody may take that for a header
            self._loose = 0
            if self._reading is not None:
                self._progress()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        super().on_body(body)
        self._loose = 0

    def on_message_complete(self) -> None:
        """Note the last byte of a message."""
        if not self._in_head:  # of a request that is parsed again
            super().on_message_complete()
            self._in_message = False
            self._loose = 0
            if self._reading is not None:
                self._progress()

    # What uvicorn calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._connections.work(self)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on with what came meanwhile, or rest."""
        self._answering = None
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_writing()
        elif self._answering is None:
            self._connections.rest(self)
            self._go_on()

    def timeout_keep_alive_handler(self) -> None:
        """Close what has rested for too long."""
        self.end("idle")

    # Our own.

    def end(self, reason: str) -> None:
        """Close without a word, and count why."""
        self._metrics.closed(reason)
        self._close()

    def _close(self) -> None:
        self._connections.leave(self)
        self._unset_keepalive_if_required()
        self._progress()
        self.transport.close()
        self._await_writing()

    def _go_on(self) -> None:
        if self._refusal is not None:
            self._send_refusal(self._refusal)
            return
        if self._unread:
            self.flow.is_full = False
            self.flow.resume_reading()
            self._read(b"")
        if self._answering is None and self._in_message:
            self._unset_keepalive_if_required()
            self._await_reading()

    def _read(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        data, self._unread = self._unread + data, b""
        for start in range(0, len(data), _SLICE):
            if self._refusal is not None:
                return
            if self.pipeline:
                self._unread = data[start:]
                self.flow.is_full = True
                self.flow.pause_reading()
                return
            self._feed(data[start : start + _SLICE])
        if self._refusal is None:
            self._settle()

    def _feed(self, data: bytes) -> None:
        self._loose += len(data)
        while data:
            data = self._parse(data)
        if self._loose > self._bounds.header_bytes:
            self._refuse(self._too_large())

    def _parse(self, data: bytes) -> bytes:
        """Parse bytes; gives those that are to be parsed next."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            ours = error.__context__
            if not isinstance(ours, ServiceError):
                why = str(error) if ours is None else "its target is none"
                ours = MalformedRequest(f"this is no request of HTTP/1.1: {why}")
            self._refuse(ours)
        return b""

    def _without_upgrade(self) -> bytes:
        """Give the head anew, without the wish for another protocol, for a parser that is new.

        The old one would take the body for that protocol's, and leave it.
        """
        head = [
            b"%b %b HTTP/%b\r\n"
            % (self.parser.get_method(), self.url, self.parser.get_http_version().encode()),
            *(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"),
            b"\r\n",
        ]
        if self.parser.get_method() == b"CONNECT":
            self._refuse(MalformedRequest("this is no proxy; ask it for what it has"))
            return b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join(head)

    def _settle(self) -> None:
        """Wait for what the caller owes: the rest of a head, or of a body that nobody reads."""
        if self._in_head or (self._in_message and self._answering is None):
            if not self.flow.read_paused:  # by us, who owe it an answer
                self._await_reading()
        elif self._answering is None and self.cycle is not None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _progress(self) -> None:
        """Begin to count anew, and to wait anew: for the next head."""
        self._loose = 0
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _await_reading(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self._bounds.header_seconds, self._be_late)

    def _await_writing(self) -> None:
        if self._writing is None and self.transport.get_write_buffer_size():
            self._writing = self.loop.call_later(self._bounds.send_seconds, self._be_stalled)

    def _be_late(self) -> None:
        """Answer whoever has begun a head; who has not would take it for another's answer."""
        self._reading = None
        if self._in_head:
            seconds = self._bounds.header_seconds
            self._refuse(HeaderTimeout(f"the request's head did not arrive within {seconds:g} s"))
        else:
            self.end("silent")

    def _be_stalled(self) -> None:
        self._metrics.closed("stalled")
        self.transport.abort()

    def _too_large(self) -> HeadTooLarge:
        most = self._bounds.header_bytes
        return HeadTooLarge(f"the request's head is over {most} bytes; send less of it")

    def _refuse(self, error: ServiceError) -> None:
        """Answer the last message with an error, after the answers to those before it."""
        if self._refusal is not None:
            return
        self._metrics.rejected(error)
        self._refusal = _answer(error, self.server_state.default_headers)
        if self._answering is None:
            self._send_refusal(self._refusal)
        elif self._in_message and not self._in_head:
            self._refuse_body(self._answering, self._refusal)

    def _refuse_body(self, answering: RequestResponseCycle, refusal: bytes) -> None:
        if self.cycle is not answering:
            self.pipeline.popleft()  # the last
        elif answering.response_started:
            self._close()
        else:
            _tell_gone(answering)
            self._answering = None
            self._connections.rest(self)
            self._send_refusal(refusal)

    def _send_refusal(self, refusal: bytes) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(refusal)
        self.flow.resume_reading()
        if self._reading is not None:
            self._reading.cancel()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._reading = self.loop.call_later(_LINGER, self._close)
        else:
            self._close()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Give the bytes of a head, without its first line's method and version."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _tell_gone(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


def _answer(error: ServiceError, every: list[tuple[bytes, bytes]]) -> bytes:
    """Give a problem as it is sent; no application has seen its request."""
    request = Request({"type": "http", "headers": []})
    request_log.name(request.scope)
    response = problem_details.response(
        problem_details.of(error, request),
        {"X-Request-ID": request_log.request_id(request.scope), "Connection": "close"},
    )
    status = HTTPStatus(response.status_code)
    logger.info("a connection is refused: %d, %s", status, error)
    security_headers.protect(response.headers)
    lines = [b"%b: %b\r\n" % header for header in (*every, *response.raw_headers)]
    start = f"HTTP/1.1 {status} {status.phrase}\r\n".encode()
    return b"".join([start, *lines, b"\r\n", bytes(response.body)])
