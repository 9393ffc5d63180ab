"""Probes and metrics: what machines ask, answered without touching the model's work."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from prometheus_client import exposition
from prometheus_client.registry import CollectorRegistry
from starlette.responses import PlainTextResponse, Response

from service.serving.registry import ModelRegistry

PATHS = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})  # asked often, and by machines
# The same questions as the Open Inference Protocol asks them, on the port of what it asks about.
INFERENCE_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})

_PROBE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}},
    503: {"description": "Service Unavailable", "content": {"text/plain": {}}},
}


Verbose = Annotated[str | None, Query(description="list every check; needs no value")]


def router(
    model_registry: ModelRegistry, registry: CollectorRegistry, is_leaving: Callable[[], bool]
) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()

    @routes.get("/livez", responses=_PROBE, response_class=PlainTextResponse)
    async def livez(verbose: Verbose = None) -> Response:
        """Should this process go on living; if not, restart it."""
        return _probe(
            {"worker": model_registry.failure_reason}, verbose, _about_candidates(model_registry)
        )

    @routes.get("/readyz", responses=_PROBE, response_class=PlainTextResponse)
    async def readyz(verbose: Verbose = None) -> Response:
        """Should requests be sent here now."""
        checks = {
            "model": model_registry.not_loaded_reason,
            "worker": model_registry.failure_reason,
            "stop": "the service is stopping" if is_leaving() else None,
        }
        served = model_registry.served.values()
        notices = [one.ensemble.notice for one in served if one.ensemble.notice]
        return _probe(checks, verbose, [*notices, *_about_candidates(model_registry)])

    @routes.get("/startupz", responses=_PROBE, response_class=PlainTextResponse)
    async def startupz(verbose: Verbose = None) -> Response:
        """Has the model been loaded, warmed and timed."""
        return _probe({"model": model_registry.not_loaded_reason}, verbose)

    @routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {}}}},
        response_class=PlainTextResponse,
    )
    async def metrics(request: Request) -> Response:
        """Give the metrics in Prometheus's or OpenMetrics' format."""
        encode, media_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=media_type)

    return routes


def _about_candidates(model_registry: ModelRegistry) -> list[str]:
    """Say what no probe fails for, and somebody should know."""
    return [
        f"{name}, a shadow candidate, does not work: {complaint}"
        for name, complaint in model_registry.is_excluded_from_probes.items()
    ]


def _probe(
    checks: Mapping[str, str | None], verbose: str | None, notices: Iterable[str] = ()
) -> Response:
    """Answer 200, or 503 with what is wrong; `checks` are complaints by name."""
    wrong = {name: complaint for name, complaint in checks.items() if complaint}
    if verbose is not None:
        marks = [
            f"[{'-' if name in wrong else '+'}]{name} {checks[name] or 'ok'}" for name in checks
        ]
        told = [f"[i]notice {notice}" for notice in notices]
        lines = [*marks, *told, "failed" if wrong else "ok"]
    else:
        lines = list(wrong.values()) or ["ok"]
    return PlainTextResponse(
        "\n".join(lines) + "\n", 503 if wrong else 200, {"Cache-Control": "no-store"}
    )
