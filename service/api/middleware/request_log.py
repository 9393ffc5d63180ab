"""What every request has: a name, a count, a duration. One ASGI middleware around the app."""

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
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
_AT_ONCE = "/explain"  # whose caller looks at what comes: it has no bulk
_LINGER = 2.0  # seconds a caller has to notice an answer that came before its body was read
_SMALL = 1024 * 1024  # bytes of a body that may come for nothing, so that its connection can go on


def request_id(scope: Scope) -> str:
    """Give the request's name: the caller's `X-Request-ID` if it is a sane one, else ours."""
    name: str = scope[_KEY]
    return name


def name(scope: Scope) -> None:
    """Give a request its name."""
    scope[_KEY] = named(Headers(scope=scope).get("x-request-id", ""))


def named(given: str) -> str:
    """Give what a request is called: the name that its caller gave if that is a sane one."""
    return given if _ALLOWED.fullmatch(given) else _new_id()


def path(scope: Scope) -> str:
    """Give the path below uvicorn's `--root-path`, which is a part of the scope's."""
    whole: str = scope["path"]
    return whole.removeprefix(scope.get("root_path", ""))


def name_route(scope: Scope, template: str) -> None:
    """Say which route a request is for, where no router has."""
    scope[_ROUTE] = template


def is_background(scope: Scope) -> bool:
    """Tell whether nobody waits for the answer."""
    return path(scope) != _AT_ONCE and security_headers.is_background(
        Headers(scope=scope).get(security_headers.PRIORITY)
    )


def note(scope: Scope, notes: Mapping[str, Any]) -> None:
    """Add to what the log will say of a request; never what it brought."""
    scope[_NOTES] |= notes


class RequestLog:
    """Names, counts, times and logs requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        name(scope)
        scope[_NOTES] = {}
        span = trace.get_current_span().get_span_context()
        started = time.monotonic()
        status = 500  # of a request that dies before it answers

        unread = _is_long(asked)

        async def receive_noting() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_named(message: Message) -> None:
            nonlocal status, unread
            if message["type"] == "http.response.start":
                status = message["status"]
                # What has not come in time may go on not coming.
                unread = unread or status == HTTPStatus.REQUEST_TIMEOUT
                sent = MutableHeaders(scope=message)
                sent["X-Request-ID"] = scope[_KEY]
                security_headers.protect(sent)
                if span.is_valid:
                    sent["traceresponse"] = _traceresponse(span)
                # Answered before its body was read, the connection cannot go on; and whoever
                # keeps one to a service that is stopping should take another, elsewhere.
                if unread or self._is_leaving():
                    sent["Connection"] = "close"
            if message["type"] == "http.response.body" and unread:
                # Closing on a caller that still sends would take the answer from it.
                await send({**message, "more_body": True})
                await _linger(receive)
                message = {"type": "http.response.body"}
            await send(message)

        self._metrics.in_flight(1)
        try:
            await self._app(scope, receive_noting, send_named)
        finally:
            self._metrics.in_flight(-1)
            self._tell(scope, status, time.monotonic() - started, span)

    def _tell(self, scope: Scope, status: int, seconds: float, span: SpanContext) -> None:
        # The template, never the path: a label's values must be few.
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


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # a name, no secret; uuid4() asks the system


def _traceresponse(span: SpanContext) -> str:
    """Name the span that answers, as W3C's Trace Context Level 2 has it."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _is_long(asked: Headers) -> bool:
    """Tell whether a body left unread is too much to let come and be forgotten by uvicorn."""
    if "transfer-encoding" in asked or "expect" in asked:
        return True
    declared = asked.get("content-length", "0")
    return not declared.isdecimal() or int(declared) > _SMALL


async def _linger(receive: Receive) -> None:
    """Read and forget what still comes, until the caller has sent or left, or time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (await receive()).get("more_body", False):
                pass
