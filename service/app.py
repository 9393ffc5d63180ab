"""The composition root: settings in, a FastAPI application out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from service import apart, lag
from service.api import classify, guard, health, page, problems, requests
from service.api.gate import Gate
from service.api.guard import Guard
from service.api.ports import Ports
from service.api.requests import Requests
from service.classifier import Classifier, Limits
from service.ensemble import Backend
from service.images import Bounds
from service.keys import Keyring
from service.metrics import Metrics
from service.settings import Settings

Load = Callable[[Settings], Backend]
"""Reads the models and puts them on the device: blocking, seconds long."""

# What pages of other origins may send, and may see of an answer.
_SENT = ("Authorization", "X-API-Key", "X-Request-ID", "X-Timeout-Ms")
_SEEN = (
    *("X-Request-ID", "Server-Timing", "Retry-After"),
    *("RateLimit-Policy", "RateLimit", "WWW-Authenticate"),
)


def create_classifier(
    settings: Settings, *, load: Load = apart.load, metrics: Metrics | None = None
) -> Classifier:
    """Put the classifier together; its metrics go nowhere unless there are any."""
    metrics = metrics or Metrics()

    def timed_load() -> Backend:
        started = time.perf_counter()
        loaded = load(settings)
        metrics.loaded(loaded, time.perf_counter() - started)
        return loaded

    limits = Limits(
        picture=Bounds(settings.max_pixels, settings.decode_seconds),
        max_queue_bytes=settings.max_queue_bytes,
        stall_seconds=settings.stall_seconds,
    )
    return Classifier(timed_load, limits, metrics.work)


def create_app(
    settings: Settings,
    *,
    load: Load = apart.load,
    is_leaving: Callable[[], bool] = lambda: False,
    tracer_provider: TracerProvider | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Put the service together; `load` is the one place where a test puts something else.

    `is_leaving` tells whether the process has been told to stop. Spans go to `tracer_provider`,
    or to where OpenTelemetry's variables in the environment say, or nowhere. `metrics` may have
    been made before, by whoever counts what happens before a request is one.
    """
    metrics = metrics or Metrics()
    classifier = create_classifier(settings, load=load, metrics=metrics)
    metrics.expect(classify.PATH, "POST", {200, *problems.STATUS.values()})
    metrics.watch(
        ready=lambda: not (classifier.loaded or classifier.worked or is_leaving()),
        backlog=classifier.backlog,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with classifier:
            watching = asyncio.create_task(lag.watch(metrics.lag))
            yield
            watching.cancel()

    app = FastAPI(
        title="googlenet-service",
        version=metadata.version("googlenet-service"),
        summary="Name what is on a picture.",
        lifespan=lifespan,
        telemetry={
            "tracer_provider": tracer_provider,
            "auto_configure": True,
            "metrics": False,  # those are for Prometheus
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: requests.path(scope) in health.PATHS,
        },
    )
    app.include_router(classify.router(classifier, settings, metrics, tracer_provider))
    app.include_router(health.router(classifier, metrics.registry, is_leaving))
    app.include_router(page.router())
    problems.install(app, metrics)
    # The last one added is the first to see a request.
    app.add_middleware(Gate, classifier=classifier, settings=settings, metrics=metrics)
    if settings.keys or settings.key_digests:
        keyring = Keyring(settings.keys, settings.key_digests, metrics.callers)
        app.add_middleware(Guard, keyring=keyring, metrics=metrics)
        guard.install(app)
    app.add_middleware(ServerErrorMiddleware, handler=problems.on_bug)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=("GET", "POST"),
            allow_headers=_SENT,
            expose_headers=_SEEN,
        )
    if settings.probe_port:
        app.add_middleware(Ports, probe_port=settings.probe_port)
    app.add_middleware(Requests, metrics=metrics, is_leaving=is_leaving)
    return app
