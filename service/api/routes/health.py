"""Probes and metrics, which do no work on the executors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from starlette.responses import PlainTextResponse, Response

from service.serving.core import Core

PATHS = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})  # logged at DEBUG
# The probes of the Open Inference Protocol, which stay on its own port.
INFERENCE_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})

_PROBE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}},
    503: {"description": "Service Unavailable", "content": {"text/plain": {}}},
}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

Verbose = Annotated[str | None, Query(description="list every check; needs no value")]


def router(core: Core, is_leaving: Callable[[], bool]) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(default_response_class=PlainTextResponse)
    handlers = _Handlers(core, is_leaving)
    for handler in (handlers.livez, handlers.readyz, handlers.startupz):
        routes.get(f"/{handler.__name__}", responses=_PROBE)(handler)
    routes.get("/metrics", responses=_METRICS)(handlers.metrics)
    return routes


@dataclass(frozen=True, slots=True)
class _Collected:
    """Metrics as a registry gives them to an encoder."""

    families: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        """Return them."""
        return self.families


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    core: Core
    is_leaving: Callable[[], bool]

    async def livez(self, verbose: Verbose = None) -> Response:
        """Should this process go on living; if not, restart it."""
        checks = {"worker": self.core.status.failure_reason}
        return _probe(checks, verbose, self._failed_candidates())

    async def readyz(self, verbose: Verbose = None) -> Response:
        """Should requests be sent here now."""
        status = self.core.status
        checks = {
            "model": status.not_loaded_reason,
            "worker": status.failure_reason,
            "stop": "the service is stopping" if self.is_leaving() else None,
        }
        ensembles = [served.ensemble for served in status.served.values()]
        notices = [ensemble.notice for ensemble in ensembles if ensemble.notice]
        return _probe(checks, verbose, [*notices, *self._failed_candidates()])

    async def startupz(self, verbose: Verbose = None) -> Response:
        """Has the model been loaded, warmed and timed."""
        return _probe({"model": self.core.status.not_loaded_reason}, verbose)

    async def metrics(self, request: Request) -> Response:
        """Give the metrics in Prometheus's or OpenMetrics' format."""
        encode, media_type = exposition.choose_encoder(request.headers.get("accept", ""))
        families = await self.core.collect()
        return Response(encode(_Collected(families)), media_type=media_type)

    def _failed_candidates(self) -> list[str]:
        """Describe the failed shadow candidates, for which no probe fails."""
        return [
            f"{name}, a shadow candidate, does not work: {reason}"
            for name, reason in self.core.status.excluded_reasons.items()
        ]


def _probe(
    checks: Mapping[str, str | None], verbose: str | None, notices: Iterable[str] = ()
) -> Response:
    """Respond 200, or 503 if a check has a failure reason."""
    failed = {name: reason for name, reason in checks.items() if reason}
    if verbose is None:
        lines = [*failed.values()] or ["ok"]
    else:
        lines = [
            *(
                f"[{'-' if reason else '+'}]{name} {reason or 'ok'}"
                for name, reason in checks.items()
            ),
            *(f"[i]notice {notice}" for notice in notices),
            "failed" if failed else "ok",
        ]
    status = 503 if failed else 200
    return PlainTextResponse("\n".join(lines) + "\n", status, {"Cache-Control": "no-store"})
