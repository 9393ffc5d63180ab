"""The composition root: settings in, a FastAPI application out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from opentelemetry.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from service.api import parameters, problem_details
from service.api.auth.api_keys import Keyring
from service.api.grpc.tls import Certificate
from service.api.middleware import auth, request_log
from service.api.middleware.auth import Authentication
from service.api.middleware.early_admission import EarlyAdmission
from service.api.middleware.head_method import HeadMethod
from service.api.middleware.probe_port import ProbePort
from service.api.middleware.request_log import RequestLog
from service.api.open_inference import codec
from service.api.open_inference import routes as open_inference
from service.api.open_inference.handler import Inference
from service.api.routes import classify, docs, explain, health, page
from service.api.routes import models as model_routes
from service.api.uploads import COPIES, Budget
from service.errors import WrongOption
from service.models import store
from service.scheduling.types import BatchReport, DropReport, RestartReport
from service.serving import registry
from service.serving.metrics import loop_lag, worker_collector
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry, RegistryHooks
from service.serving.served_model import ServedModel
from service.serving.shadow import ShadowCandidate
from service.settings import Settings
from service.worker import client

if TYPE_CHECKING:
    from service.api.grpc.server import Listening
from service.serving.factory import LoadBackend, create_served_model

# What pages of other origins may send, and may see of an answer.
_SENT = (
    *("Authorization", "X-API-Key", "X-Request-ID", "X-Timeout-Ms", "Priority"),
    *("traceparent", "tracestate", "baggage", "sentry-trace", "X-Requested-With"),
    codec.HEADER_LENGTH,
)
_SEEN = (
    *("X-Request-ID", "Server-Timing", "Cache-Status", "Retry-After", codec.HEADER_LENGTH),
    *("RateLimit-Policy", "RateLimit", "WWW-Authenticate", "traceresponse"),
)


def create_catalogue(
    settings: Settings,
    load: LoadBackend,
    metrics: Metrics,
    gave_up: Callable[[str], None] = lambda _: None,
) -> ModelRegistry:
    """Put together what serves models side by side; see `create_app`."""
    where = store.locate(settings.model_store)

    def make(name: str) -> ServedModel:
        chosen = settings.model_copy(update={"model": name})

        def report(found: BatchReport | DropReport | RestartReport) -> None:
            metrics.work(name, found)
            if isinstance(found, RestartReport):
                changed(models.served)

        return create_served_model(chosen, load=load, report=report, gave_up=partial(gave_up, name))

    def fingerprint(name: str) -> object:
        fingerprints = [where.fingerprint(member) for member in name.split(",")]
        return None if None in fingerprints else tuple(fingerprints)

    def changed(served: Mapping[str, ServedModel]) -> None:
        metrics.serves({name: (one.backend, one.load_seconds) for name, one in served.items()})

    hooks = RegistryHooks(
        make, fingerprint, lambda one: worker_collector.resident(one.backend.pid), changed
    )
    bounds = registry.Bounds(settings.max_models, settings.max_model_bytes)
    models = ModelRegistry(
        settings.served, hooks, bounds, watch_seconds=settings.model_poll_seconds
    )
    return models


def create_app(  # noqa: PLR0913 - all but settings have their defaults
    settings: Settings,
    *,
    load: LoadBackend = client.load,
    is_leaving: Callable[[], bool] = lambda: False,
    tracer_provider: TracerProvider | None = None,
    metrics: Metrics | None = None,
    certificate: Certificate | None = None,
    gave_up: Callable[[str], None] = lambda _: None,
) -> FastAPI:
    """Put the service together; `load` is the one place where a test puts something else.

    `is_leaving` tells whether the process has been told to stop. Spans go to `tracer_provider`,
    or to where OpenTelemetry's variables in the environment say, or nowhere. `metrics` may have
    been made before, by whoever counts what happens before a request is one. `certificate` is what
    gRPC is encrypted with. `gave_up` is called with the name of a model whose worker has ended too
    often to be started again.
    """
    metrics = metrics or Metrics()
    models = create_catalogue(settings, load, metrics, gave_up)
    shadow = ShadowCandidate(
        models,
        lambda found: metrics.shadow(found.outcome, found.distance),
        candidate=settings.shadow,
        share=settings.shadow_share,
        seconds=settings.timeout_seconds,
    )
    budget = Budget(settings.max_inflight_body_bytes, COPIES)
    inferring = Inference(models, settings, metrics)
    for template in (classify.PATH, open_inference.INFER):
        metrics.expect(template, "POST", {200, *problem_details.STATUS.values()})
    metrics.watch(
        ready=lambda: models.is_ready and not is_leaving(),
        backlog=models.backlog,
        cached=models.cached,
    )

    has_keys = settings.api_keys_file or settings.api_key_hashes
    keyring = (
        Keyring(settings.api_keys_file, settings.api_key_hashes, metrics.callers)
        if has_keys
        else None
    )
    listening = _listening(settings, inferring, budget, keyring, is_leaving, certificate)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with models, shadow, listening or nullcontext():
            watching = asyncio.create_task(loop_lag.watch(metrics.lag))
            yield
            watching.cancel()

    app = FastAPI(
        title="googlenet-service",
        version=metadata.version("googlenet-service"),
        summary="Name what is on an image.",
        lifespan=lifespan,
        dependencies=[Depends(parameters.check_query)],
        responses=problem_details.documented(422),
        openapi_url=None,  # its routes are ours: `service.api.routes.docs`
        telemetry={
            "tracer_provider": tracer_provider,
            "auto_configure": True,
            "metrics": False,  # those are for Prometheus
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: (
                request_log.path(scope) in health.PATHS | health.INFERENCE_PATHS
            ),
        },
    )
    app.state.refresh = models.refresh  # on SIGHUP
    app.state.leave = listening.leave if listening else lambda: None  # before the server stops
    app.state.serves = lambda: bool(models.served)
    app.include_router(classify.router(models, shadow, settings, budget, metrics, tracer_provider))
    app.include_router(explain.router(models, settings, budget, metrics))
    app.include_router(model_routes.router(models, shadow, settings))
    app.include_router(open_inference.about(inferring, is_leaving))
    app.include_router(open_inference.router(inferring, budget, tracer_provider))
    app.include_router(health.router(models, metrics.registry, is_leaving))
    app.include_router(page.router())
    app.include_router(docs.router())
    problem_details.install(app, metrics)
    # The last one added is the first to see a request.
    app.add_middleware(EarlyAdmission, model_registry=models, settings=settings, metrics=metrics)
    if keyring:
        app.add_middleware(Authentication, keyring=keyring, metrics=metrics)
        auth.install(app)
    app.add_middleware(ServerErrorMiddleware, handler=problem_details.on_bug)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=("GET", "POST"),
            allow_headers=(*_SENT, *filter(None, (settings.cors_headers or "").split(","))),
            expose_headers=_SEEN,
        )
    if settings.probe_port:
        app.add_middleware(ProbePort, probe_port=settings.probe_port)
    app.add_middleware(HeadMethod)
    app.add_middleware(RequestLog, metrics=metrics, is_leaving=is_leaving)
    return app


def _listening(  # noqa: PLR0913, PLR0917 - what a server of its own is made of
    settings: Settings,
    inferring: Inference,
    budget: Budget,
    keyring: Keyring | None,
    is_leaving: Callable[[], bool],
    certificate: Certificate | None,
) -> "Listening | None":
    """Give what listens for gRPC, if that is wanted."""
    if not settings.grpc_port:
        return None
    try:
        from service.api.grpc import server  # noqa: PLC0415 - only who wants it needs its libraries
    except ImportError as error:
        raise WrongOption(
            "--grpc-port needs gRPC: pip install 'googlenet-service[grpc]'"
        ) from error
    answering = server.Service(inferring, budget, keyring, is_leaving)
    return server.Listening(answering, settings, certificate)
