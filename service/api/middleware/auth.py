"""Authentication of HTTP requests by API key, with each key's rate limits."""

import math
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problem_details
from service.api.adapters import torchserve
from service.api.auth import authentication
from service.api.auth.api_keys import Keyring
from service.api.middleware.request_log import name_route, note, path
from service.api.routes import docs, health, page
from service.errors import ServiceError, Unauthorized
from service.serving.core import Core
from service.serving.rate_limits import Left

# All other paths need a key, unknown ones included. The documentation describes the software, not
# what it serves, and a browser sends no key for a page; the playground asks for one.
_PAGES = page.PATHS | docs.PATHS
OPEN = health.PATHS | health.INFERENCE_PATHS | _PAGES | {torchserve.PING}

_MANAGES = "googlenet.manages"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_STRING = {"schema": {"type": "string"}}
_HEADERS = {
    "401": {"WWW-Authenticate": _STRING},
    "429": {
        "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"},
        "RateLimit-Policy": _STRING | {"description": "each limit's requests (q) in seconds (w)"},
        "RateLimit": _STRING | {"description": "what is left (r), and until all is again (t)"},
    },
}


def is_manager(scope: Scope) -> bool:
    """Tell whether a request's key may manage models; without keys none may."""
    return bool(scope.get(_MANAGES))


class Authentication:
    """Refuses a request without a key or over its rate limits; reads its headers only."""

    def __init__(self, app: ASGIApp, keyring: Keyring, core: Core) -> None:
        self._app, self._keyring, self._core = app, keyring, core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._keyring.refresh(time.monotonic())
            if path(scope) not in OPEN:
                await self._authenticated(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _authenticated(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            api_key = authentication.authenticate(self._keyring, dict(scope["headers"]))
        except Unauthorized as error:
            await self._refuse(error, scope, receive, send)
            return
        scope[_MANAGES] = api_key.manages
        note(scope, {"key": api_key.name})
        usage = await authentication.count(api_key, self._core)
        if fields := _fields(usage.left):
            send = _with_fields(send, fields)
        if refusal := authentication.refusal(usage):
            await self._refuse(refusal, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # The router has not run; a documented path is a route's template.
        if (template := path(scope)) in scope["app"].openapi()["paths"]:
            name_route(scope, template)
        refusal = problem_details.refusal(error, Request(scope), self._core.metrics)
        await refusal(scope, receive, send)


def install(app: FastAPI) -> None:
    """Add the API keys to the app's OpenAPI document."""
    without = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            _describe(without())
        return without()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _describe(schema: dict[str, Any]) -> None:
    """Add security schemes, and the responses 401 and 429, to an OpenAPI document."""
    schema["components"]["securitySchemes"] = _SCHEMES
    for template, operations in schema["paths"].items():
        if template not in OPEN:
            for operation in operations.values():
                operation["security"] = [{scheme: []} for scheme in _SCHEMES]
                operation["responses"] |= _refusals(template)


def _refusals(template: str) -> dict[str, dict[str, Any]]:
    return {
        str(status): described | {"headers": _HEADERS[str(status)]}
        for status, described in problem_details.documented(401, 429, template=template).items()
    }


def _fields(remaining: Sequence[Left]) -> list[tuple[bytes, bytes]]:
    """Return the header fields of the IETF's RateLimit draft, if there are limits."""
    if not remaining:
        return []
    policy = ", ".join(
        f'"{left.limit.window}";q={left.limit.requests};w={left.limit.seconds}'
        for left in remaining
    )
    state = ", ".join(
        f'"{left.limit.window}";r={left.requests};t={math.ceil(left.seconds)}' for left in remaining
    )
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


def _with_fields(send: Send, fields: list[tuple[bytes, bytes]]) -> Send:
    """Add header fields to the response."""

    async def send_fields(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *fields]}
        await send(message)

    return send_fields
