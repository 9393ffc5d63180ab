"""Who may come in: only callers with a key, each as often as it may."""

import math
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problem_details
from service.api.auth.api_keys import Keyring
from service.api.auth.rate_limits import Quota
from service.api.middleware.request_log import name_route, note, path
from service.api.routes import docs, health, page
from service.errors import RateLimited, ServiceError, Unauthorized
from service.serving.metrics.metrics import Metrics

# All else needs a key, also what is not there. The documentation tells of the software, not of
# what it serves, and a browser sends no key for a page; ours asks for one.
_PAGES = page.PATHS | docs.PATHS
OPEN = health.PATHS | health.INFERENCE_PATHS | _PAGES

NO_KEY = "send your API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
USED_UP = "your API key has no requests left for now"
_BEARER = b"bearer "
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
    """Tell whether a request's key may change which models are served; without keys none may."""
    return bool(scope.get(_MANAGES))


class Authentication:
    """Lets in who has a key and has not used it up; reads nothing but the request's head."""

    def __init__(self, app: ASGIApp, keyring: Keyring, metrics: Metrics) -> None:
        self._app, self._keyring, self._metrics = app, keyring, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            now = time.monotonic()
            self._keyring.refresh(now)
            if path(scope) not in OPEN:
                await self._guarded(scope, receive, send, now)
                return
        await self._app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, now: float) -> None:
        given = key(dict(scope["headers"]))
        found = self._keyring.find(given) if given else None
        if found is None:
            await self._refuse(Unauthorized(NO_KEY), scope, receive, send)
            return
        caller, quota = found
        scope[_MANAGES] = caller.manages
        note(scope, {"key": caller.name})
        wait = quota.take(now)
        self._metrics.called(caller.name, "rate_limited" if wait else "admitted")
        if fields := _fields(quota, now):
            send = _telling(send, fields)
        if wait:
            await self._refuse(RateLimited(USED_UP, retry_after=wait), scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        # No router has seen it; a path that is documented is a route's template.
        if (template := path(scope)) in scope["app"].openapi()["paths"]:
            name_route(scope, template)
        refusal = problem_details.refusal(error, Request(scope), self._metrics)
        await refusal(scope, receive, send)


def install(app: FastAPI) -> None:
    """Have the app's OpenAPI tell that a key is needed."""
    without = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            _describe(without())
        return without()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _describe(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI document that a key is needed, and what happens without one."""
    schema["components"]["securitySchemes"] = _SCHEMES
    for template, operations in schema["paths"].items():
        if template not in OPEN:
            for operation in operations.values():
                operation["security"] = [{scheme: []} for scheme in _SCHEMES]
                operation["responses"] |= _refusals(template)


def _refusals(template: str) -> dict[str, dict[str, Any]]:
    """Describe what a path answers without a key, or with one that is used up."""
    return {
        str(status): described | {"headers": _HEADERS[str(status)]}
        for status, described in problem_details.documented(401, 429, template=template).items()
    }


def key(headers: Mapping[bytes, bytes]) -> bytes:
    """Give the key that a request brings, if any; `Authorization` may be for somebody in front."""
    if plain := headers.get(b"x-api-key"):
        return plain
    given = headers.get(b"authorization", b"")
    return given[len(_BEARER) :].strip() if given[: len(_BEARER)].lower() == _BEARER else b""


def _fields(quota: Quota, now: float) -> list[tuple[bytes, bytes]]:
    """Say what is left of a quota in the header fields of the IETF's RateLimit draft, if any."""
    if not (left := quota.left(now)):
        return []
    policy = ", ".join(
        f'"{one.limit.window}";q={one.limit.requests};w={one.limit.seconds}' for one in left
    )
    state = ", ".join(
        f'"{one.limit.window}";r={one.requests};t={math.ceil(one.seconds)}' for one in left
    )
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


def _telling(send: Send, fields: list[tuple[bytes, bytes]]) -> Send:
    """Add header fields to whatever is answered."""

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *fields]}
        await send(message)

    return telling
