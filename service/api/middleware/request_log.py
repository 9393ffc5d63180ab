"""Request ids, metrics, the log and response headers of every HTTP request."""

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware import security_headers
from service.api.routes import health
from service.serving.metrics.metrics import Metrics

logger = logging.getLogger(__name__)

_ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KEY = "googlenet.request_id"
_ROUTE = "googlenet.route"
_NOTES = "googlenet.notes"
_INTERACTIVE = "/explain"  # has no background priority
_LINGER = 2.0  # seconds for a client to read a response that was sent before its body was read
_SMALL = 1024 * 1024  # bytes of an unread body that is read to keep its connection


def request_id(scope: Scope) -> str:
    """Give the request's id: the client's `X-Request-ID` if it is valid, else a random one."""
    name: str = scope[_KEY]
    return name


def name(scope: Scope) -> None:
    """Set the request's id."""
    scope[_KEY] = named(Headers(scope=scope).get("x-request-id", ""))


def named(client_id: str) -> str:
    """Give the client's id if it is valid, else a random one."""
    return client_id if _ALLOWED.fullmatch(client_id) else _new_id()


def path(scope: Scope) -> str:
    """Give the path without the root path of the settings, which the scope's begins with."""
    whole: str = scope["path"]
    return whole.removeprefix(scope.get("root_path", ""))


def name_route(scope: Scope, template: str) -> None:
    """Set the route of a request that no router has matched."""
    scope[_ROUTE] = template


def is_background(scope: Scope) -> bool:
    """Tell whether a request is background work."""
    return path(scope) != _INTERACTIVE and security_headers.is_background(
        Headers(scope=scope).get(security_headers.PRIORITY)
    )


def note(scope: Scope, notes: Mapping[str, Any]) -> None:
    """Add fields to the request's log line; never its content."""
    scope[_NOTES] |= notes


class RequestLog:
    """Counts, times and logs requests, and adds the headers that every response has."""

    def __init__(self, app: ASGIApp, metrics: Metrics, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name(scope)
        scope[_NOTES] = {}
        exchange = _Exchange(scope, receive, send, self._is_leaving)
        self._metrics.in_flight(1)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._metrics.in_flight(-1)
            self._record(exchange)

    def _record(self, exchange: "_Exchange") -> None:
        """Count and log a request that has ended."""
        scope, status, span = exchange.scope, exchange.status, exchange.span
        seconds = time.monotonic() - exchange.started
        # The template, never the path: a label has few values.
        matched: str = getattr(scope.get("route"), "path", "unmatched")
        route: str = scope.get(_ROUTE, matched)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        traced = {"trace_id": f"{span.trace_id:032x}"} if span.is_valid else {}
        self._metrics.request(
            route, method, status, seconds, traced, background=is_background(scope)
        )
        fields = {
            "id": scope[_KEY],
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            **traced,
            **scope[_NOTES],
        }
        level = logging.DEBUG if route in health.PATHS | health.INFERENCE_PATHS else logging.INFO
        logger.log(level, "%s %s %d", method, route, status, extra={"request": fields})


@dataclass(slots=True)
class _Exchange:
    """One request and its response, as they pass through the middleware."""

    scope: Scope
    receive_inner: Receive
    send_inner: Send
    is_leaving: Callable[[], bool]
    started: float = field(default_factory=time.monotonic)
    span: SpanContext = field(default_factory=lambda: trace.get_current_span().get_span_context())
    status: int = 500  # of a request without a response
    unread: bool = field(init=False)  # the body, of which more may come than is read for nothing

    def __post_init__(self) -> None:
        self.unread = _is_long(Headers(scope=self.scope))

    async def receive(self) -> Message:
        message = await self.receive_inner()
        self.unread = self.unread and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._add_headers(message)
        if message["type"] == "http.response.body" and self.unread:
            # Closing while the client still sends would lose the response.
            await self.send_inner({**message, "more_body": True})
            await _linger(self.receive_inner)
            message = {"type": "http.response.body"}
        await self.send_inner(message)

    def _add_headers(self, message: Message) -> None:
        self.status = message["status"]
        # The rest of a body that timed out may never come.
        self.unread = self.unread or self.status == HTTPStatus.REQUEST_TIMEOUT
        headers = MutableHeaders(scope=message)
        headers["X-Request-ID"] = self.scope[_KEY]
        security_headers.protect(headers)
        if self.span.is_valid:
            headers["traceresponse"] = _traceresponse(self.span)
        # A connection with an unread body cannot be reused, and one to a stopping service should
        # not be.
        if self.unread or self.is_leaving():
            headers["Connection"] = "close"


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # a name, no secret; uuid4() is a system call


def _traceresponse(span: SpanContext) -> str:
    """Format the response's span as W3C's Trace Context Level 2."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _is_long(headers: Headers) -> bool:
    """Tell whether an unread body is too large for uvicorn to receive and discard."""
    if "transfer-encoding" in headers or "expect" in headers:
        return True
    declared = headers.get("content-length", "0")
    return not declared.isdecimal() or int(declared) > _SMALL


async def _linger(receive: Receive) -> None:
    """Discard the rest of a body until it ends, the client disconnects or the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (await receive()).get("more_body", False):
                pass
