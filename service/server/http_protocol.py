"""uvicorn's HTTP/1.1 connection with limits where uvicorn's own would wait without end.

Limits are on the time and size of request headers and on the time in which a client does not read
(`Bounds`), and on the number of connections (`Connections`). `service.api.uploads` limits bodies.
"""

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGI3Application  # of the method that is overridden
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import HeaderTimeout, MalformedRequest, ServiceError
from service.server import refusal_response, request_head
from service.server.connection_limits import Bounds, Ports
from service.server.flow_control import Flow
from service.server.timeout import Timeout
from service.serving.metrics.metrics import Metrics

_SLICE = 16 * 1024  # bytes parsed at once; a request in them is answered before more is parsed
_LINGER = 2.0  # seconds to read a refusal; closing at once could discard it
_HALF_OPEN = 0.1  # seconds for the request in progress when the client has shut down its side


class Connection(HttpToolsProtocol):
    """A connection of a client, within limits."""

    # A dictionary of over 30 attributes, with uvicorn's own, would be slow and large.
    __slots__ = (
        *("_active", "_bounds", "_connections", "_deferred", "_head_bytes", "_in_head"),
        *("_in_message", "_metrics", "_ports", "_read_timeout", "_refusal", "_write_timeout"),
    )
    flow: Flow

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
        self._active: RequestResponseCycle | None = None  # in progress
        self._in_message = self._in_head = False  # from its first byte
        self._head_bytes = 0  # received since the last whole head or part of a body
        self._deferred = b""  # received, to be parsed after the requests before are answered
        self._refusal: bytes | None = None  # the last response; what is received after is ignored
        self._read_timeout = Timeout(self.loop)
        self._write_timeout = Timeout(self.loop)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Accept the connection, or close it if there are too many."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._connections = self._ports.of(self.server)
        if self._connections.admit(self):
            self._start_read_timeout()
        else:
            self._metrics.closed("full")
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection and cancel the request in progress."""
        self._read_timeout.cancel()
        self._write_timeout.cancel()
        self._unset_keepalive_if_required()
        self._connections.remove(self)
        self._deferred = b""
        self.pipeline.clear()
        if self._active is not None:
            _disconnect(self._active)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was received, unless a request before it is to be answered first."""
        if self._refusal is None:
            self._read(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own type
        """Close, as the client may have left; a whole request in progress gets a moment."""
        if self._active is None or self._in_message or self.scheme == "https":
            return None
        self.loop.call_later(_HALF_OPEN, self._close)
        return True

    def pause_writing(self) -> None:
        """Start the time in which the client has to read."""
        super().pause_writing()
        self._start_write_timeout()

    def resume_writing(self) -> None:
        """Stop that time, but for the rest that a closing connection still holds."""
        super().resume_writing()
        if not self.transport.is_closing():  # pragma: no branch - a race, by uvicorn and client
            self._write_timeout.cancel()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Note the first byte of a request."""
        super().on_message_begin()
        self._in_message = self._in_head = True

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large."""
        limit = self._bounds.header_bytes
        request_head.check(self.url, self.headers, self._head_bytes, limit)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._in_head = False
            self.headers = []  # trailers, which must not become headers of the request
            self._head_bytes = 0
            self._read_timeout.cancel()

    def on_body(self, body: bytes) -> None:
        """Receive a part of a body."""
        super().on_body(body)
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        """Note the last byte of a request."""
        if not self._in_head:  # else its head is parsed again
            super().on_message_complete()
            self._in_message = False
            self._head_bytes = 0
            self._read_timeout.cancel()

    # Called by uvicorn.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        self._connections.mark_busy(self)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Parse what was received meanwhile, or wait for the next request."""
        self._active = None
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_write_timeout()
        elif self._active is None:
            self._connections.mark_idle(self)
            self._resume()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long."""
        self.end("idle")

    # Limits.

    def end(self, reason: str) -> None:
        """Close without a response, and count the reason."""
        self._metrics.closed(reason)
        self._close()

    def _close(self) -> None:
        self._connections.remove(self)
        self._unset_keepalive_if_required()
        self._head_bytes = 0
        self._read_timeout.cancel()
        self.transport.close()
        self._start_write_timeout()

    def _resume(self) -> None:
        if self._refusal is not None:
            self._send_refusal(self._refusal)
            return
        if self._deferred:
            self.flow.is_full = False
            self.flow.resume_reading()
            self._read(b"")
        if self._active is None and self._in_message:
            self._unset_keepalive_if_required()
            self._start_read_timeout()

    def _read(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        data, self._deferred = self._deferred + data, b""
        for start in range(0, len(data), _SLICE):
            if self._refusal is not None:
                return
            if self.pipeline:
                self._deferred = data[start:]
                self.flow.is_full = True
                self.flow.pause_reading()
                return
            self._feed(data[start : start + _SLICE])
        if self._refusal is None:
            self._await_client()

    def _feed(self, data: bytes) -> None:
        self._head_bytes += len(data)
        while data:
            data = self._parse(data)
        if self._head_bytes > self._bounds.header_bytes:
            self._refuse(request_head.too_large(self._bounds.header_bytes))

    def _parse(self, data: bytes) -> bytes:
        """Parse bytes; returns those to parse next."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as parser_error:
            error = parser_error.__context__
            if not isinstance(error, ServiceError):
                reason = str(parser_error) if error is None else "its target is invalid"
                error = MalformedRequest(f"this is not a valid HTTP/1.1 request: {reason}")
            self._refuse(error)
        return b""

    def _without_upgrade(self) -> bytes:
        """Return the head without its upgrade, for a new parser; the old one ignores the body."""
        if self.parser.get_method() == b"CONNECT":
            self._refuse(MalformedRequest("CONNECT is not supported: this is not a proxy"))
            return b""
        head = request_head.without_upgrade(self.parser, self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head

    def _await_client(self) -> None:
        """Start the timeout for the rest of a head, for an unread body or for another request."""
        if self._in_head or (self._in_message and self._active is None):
            if not self.flow.read_paused:
                self._start_read_timeout()
        elif self._active is None and self.cycle is not None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_read_timeout(self) -> None:
        self._read_timeout.start(self._bounds.header_seconds, self._on_read_timeout)

    def _start_write_timeout(self) -> None:
        if self.transport.get_write_buffer_size():
            self._write_timeout.start(self._bounds.send_seconds, self._on_write_timeout)

    def _on_read_timeout(self) -> None:
        """Refuse a request whose head has begun; else a response could be taken for another's."""
        if self._in_head:
            limit = f"{self._bounds.header_seconds:g} s"
            self._refuse(HeaderTimeout(f"the request's head did not arrive within {limit}"))
        else:
            self.end("silent")

    def _on_write_timeout(self) -> None:
        self._metrics.closed("stalled")
        self.transport.abort()

    def _refuse(self, error: ServiceError) -> None:
        """Respond to the last request with an error, after the responses to those before it."""
        if self._refusal is not None:
            return
        self._metrics.rejected(error)
        self._refusal = refusal_response.encode(error, self.server_state.default_headers)
        if self._active is None:
            self._send_refusal(self._refusal)
        elif self._in_message and not self._in_head:
            self._refuse_body(self._active, self._refusal)

    def _refuse_body(self, cycle: RequestResponseCycle, response: bytes) -> None:
        if self.cycle is not cycle:
            self.pipeline.popleft()  # the last
        elif cycle.response_started:
            self._close()
        else:
            _disconnect(cycle)
            self._active = None
            self._connections.mark_idle(self)
            self._send_refusal(response)

    def _send_refusal(self, response: bytes) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(response)
        self.flow.resume_reading()
        self._read_timeout.cancel()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._read_timeout.start(_LINGER, self._close)
        else:
            self._close()


def _disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()
