"""Which port answers what, where probes and metrics have one of their own."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import problem_details
from service.api.middleware.request_log import path
from service.api.routes import health

_OTHERS = "only probes and metrics are on this port; ask the service's own"
_PROBES = "probes and metrics have a port of their own here (--probe-port)"


class ProbePort:
    """Answers probes and metrics on their port, all else on the others, and 404 otherwise."""

    def __init__(self, app: ASGIApp, probe_port: int) -> None:
        self._app, self._probe_port = app, probe_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _, port = scope.get("server") or (None, None)
            if (port == self._probe_port) != (path(scope) in health.PATHS):
                where = _OTHERS if port == self._probe_port else _PROBES
                missing = problem_details.problem(404, "not_found", where, Request(scope))
                await problem_details.response(missing)(scope, receive, send)
                return
        await self._app(scope, receive, send)
