"""A port of their own for probes and metrics."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import problem_details
from service.api.middleware.request_log import path
from service.api.routes import health

_ONLY_PROBES = "only probes and metrics are on this port; ask the service's own"
_NO_PROBES = "probes and metrics have a port of their own here (--probe-port)"


class ProbePort:
    """Passes probes and metrics on their port, all else on the others; 404 otherwise."""

    def __init__(self, app: ASGIApp, probe_port: int) -> None:
        self._app, self._probe_port = app, probe_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _, port = scope.get("server") or (None, None)
            if (port == self._probe_port) != (path(scope) in health.PATHS):
                detail = _ONLY_PROBES if port == self._probe_port else _NO_PROBES
                missing = problem_details.problem(404, "not_found", detail, Request(scope))
                await problem_details.response(missing)(scope, receive, send)
                return
        await self._app(scope, receive, send)
