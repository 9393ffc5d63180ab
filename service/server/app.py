"""Compose the application: settings in, a FastAPI application out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from opentelemetry.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from service.api import parameters, problem_details, statuses
from service.api.adapters import routers as adapters
from service.api.adapters.adapter import Adapter
from service.api.auth.api_keys import Keyring
from service.api.fetch import fetcher
from service.api.middleware import auth, request_log
from service.api.middleware.auth import Authentication
from service.api.middleware.early_admission import EarlyAdmission
from service.api.middleware.head_method import HeadMethod
from service.api.middleware.probe_port import ProbePort
from service.api.middleware.request_log import RequestLog
from service.api.open_inference import metadata as open_inference_metadata
from service.api.open_inference import paths as open_inference_paths
from service.api.open_inference import routes as open_inference
from service.api.open_inference.handler import Inference
from service.api.open_inference.json_request import HEADER_LENGTH
from service.api.routes import classify, docs, embed, explain, health, page
from service.api.routes import models as model_routes
from service.api.routes.image_request import Receiver
from service.api.tls import Certificate
from service.api.tracing import Stages
from service.api.upload_budget import COPIES, Budget
from service.api.uploads import BodyLimits
from service.errors import WrongOption
from service.models import store
from service.scheduling.types import BatchReport, DropReport, RestartReport
from service.serving.core import Core, LocalCore
from service.serving.factory import LoadBackend, create_served_model
from service.serving.metrics import loop_lag, worker_collector
from service.serving.metrics.metrics import Metrics
from service.serving.model_slot import RegistryHooks, RegistryLimits
from service.serving.registry import ModelRegistry
from service.serving.served_model import ServedModel
from service.serving.shadow import ShadowCandidate
from service.settings import Settings
from service.worker import client

if TYPE_CHECKING:
    from service.api.grpc.server import Listening

# Headers that pages of other origins may send, and may read of a response.
_REQUEST_HEADERS = (
    *("Authorization", "X-API-Key", "X-Request-ID", "X-Timeout-Ms", "Priority"),
    *("traceparent", "tracestate", "baggage", "sentry-trace", "X-Requested-With"),
    HEADER_LENGTH,
)
_RESPONSE_HEADERS = (
    *("X-Request-ID", "Server-Timing", "Cache-Status", "Retry-After", HEADER_LENGTH),
    *("RateLimit-Policy", "RateLimit", "WWW-Authenticate", "traceresponse"),
)


@dataclass(frozen=True, slots=True)
class _State:
    """The objects that routes and middleware share."""

    settings: Settings
    core: Core
    budget: Budget
    receiver: Receiver
    inference: Inference
    keyring: Keyring | None
    is_leaving: Callable[[], bool]


def create_app(  # noqa: PLR0913 - all but settings have their defaults
    settings: Settings,
    *,
    load: LoadBackend = client.load,
    is_leaving: Callable[[], bool] = lambda: False,
    tracer_provider: TracerProvider | None = None,
    metrics: Metrics | None = None,
    certificate: Certificate | None = None,
    core: Core | None = None,
) -> FastAPI:
    """Compose the service; tests pass a fake backend as `load`.

    `is_leaving` returns whether the process is stopping. Spans go to `tracer_provider`, or to where
    OpenTelemetry's environment variables say, or nowhere. `metrics` may already count connections.
    `certificate` encrypts gRPC. Without a `core` it makes one in this process.
    """
    metrics = core.metrics if core else metrics or Metrics()
    core = core or create_core(settings, load, metrics)
    metrics.is_ready(lambda: core.status.is_ready and not is_leaving())
    state = _create_state(settings, core, Stages(tracer_provider), is_leaving)
    grpc_server = _create_grpc_server(state, certificate)
    app = FastAPI(
        title="googlenet-service",
        version=metadata.version("googlenet-service"),
        summary="Image classification service.",
        lifespan=partial(_lifespan, state, grpc_server or nullcontext()),
        dependencies=[Depends(parameters.check_query)],
        responses=problem_details.documented(422),
        openapi_url=None,  # served by `service.api.routes.docs`
        telemetry=_telemetry(tracer_provider),
    )
    app.state.refresh = core.models.refresh if isinstance(core, LocalCore) else None  # on SIGHUP
    app.state.leave = grpc_server.leave if grpc_server else lambda: None  # before the server stops
    app.state.serves = lambda: bool(core.status.served)
    _add_routes(app, state)
    _add_middleware(app, state)
    return app


def create_core(
    settings: Settings,
    load: LoadBackend,
    metrics: Metrics,
    gave_up: Callable[[str], None] = lambda _: None,
    serves: Callable[[Collection[str]], None] = lambda _: None,
) -> LocalCore:
    """Create the core in this process.

    `gave_up` is called with the name of a model whose worker has ended too often to be restarted,
    `serves` with the names of all served models when they change.
    """
    models = create_registry(settings, load, metrics, gave_up, serves)
    metrics.watch(backlog=models.backlog, cached=models.cached)
    shadow = ShadowCandidate(
        models,
        lambda comparison: metrics.shadow(comparison.outcome, comparison.distance),
        candidate=settings.shadow,
        share=settings.shadow_share,
        seconds=settings.timeout_seconds,
    )
    return LocalCore(models, shadow, metrics)


def create_registry(
    settings: Settings,
    load: LoadBackend,
    metrics: Metrics,
    gave_up: Callable[[str], None] = lambda _: None,
    serves: Callable[[Collection[str]], None] = lambda _: None,
) -> ModelRegistry:
    """Create the registry of the models that `settings` name; see `create_core`."""
    model_store = store.locate(settings.model_store)

    def make(name: str) -> ServedModel:
        def report(event: BatchReport | DropReport | RestartReport) -> None:
            metrics.work(name, event)
            if isinstance(event, RestartReport):
                changed(models.served)

        model_settings = settings.model_copy(update={"model": name})
        return create_served_model(
            model_settings, load=load, report=report, gave_up=partial(gave_up, name)
        )

    def fingerprint(name: str) -> object:
        fingerprints = [model_store.fingerprint(member) for member in name.split(",")]
        return None if None in fingerprints else tuple(fingerprints)

    def changed(served: Mapping[str, ServedModel]) -> None:
        metrics.serves({name: (it.backend, it.load_seconds) for name, it in served.items()})
        serves(served.keys())

    def resident_bytes(served_model: ServedModel) -> int:
        return worker_collector.resident(served_model.backend.pid)

    limits = RegistryLimits(settings.max_models, settings.max_model_bytes)
    hooks = RegistryHooks(make, fingerprint, resident_bytes, changed)
    models = ModelRegistry(
        settings.served, hooks, limits, watch_seconds=settings.model_poll_seconds
    )
    return models


def _create_state(
    settings: Settings, core: Core, stages: Stages, is_leaving: Callable[[], bool]
) -> _State:
    """Create what requests share, and register it with the metrics."""
    for template in (classify.PATH, open_inference_paths.INFER):
        core.metrics.expect(template, "POST", {200, *statuses.HTTP})
    keyring = None
    if settings.api_keys_file or settings.api_key_hashes:
        keyring = Keyring(settings.api_keys_file, settings.api_key_hashes, core.metrics.callers)
    budget = Budget(settings.max_inflight_body_bytes, COPIES)
    fetch = fetcher.of(settings, core.metrics)
    receiver = Receiver(
        core, budget, BodyLimits.of(settings), settings.timeout_seconds, fetch, stages
    )
    inference = Inference(core, settings)
    return _State(settings, core, budget, receiver, inference, keyring, is_leaving)


@asynccontextmanager
async def _lifespan(
    state: _State, grpc_server: AbstractAsyncContextManager[Any], _: FastAPI
) -> AsyncIterator[None]:
    async with state.core, grpc_server:
        lag_task = asyncio.create_task(loop_lag.watch(state.core.metrics.lag))
        yield
        lag_task.cancel()


def _telemetry(tracer_provider: TracerProvider | None) -> Any:
    """Return FastAPI's options for OpenTelemetry: spans of all requests but probes."""
    excluded = health.PATHS | health.INFERENCE_PATHS
    return {
        "tracer_provider": tracer_provider,
        "auto_configure": True,
        "metrics": False,  # Prometheus scrapes them
        "logs": False,
        "operation_spans": False,
        "exclude": lambda scope: request_log.path(scope) in excluded,
    }


def _create_grpc_server(state: _State, certificate: Certificate | None) -> "Listening | None":
    """Create the gRPC server if it has a port; raises `WrongOption` without gRPC's libraries."""
    settings = state.settings
    if not settings.grpc_port:
        return None
    try:
        from service.api.grpc import server, service  # noqa: PLC0415 - gRPC's libraries are optional
    except ImportError as error:
        raise WrongOption(
            "--grpc-port needs gRPC: pip install 'googlenet-service[grpc]'"
        ) from error
    grpc_service = service.Service(state.inference, state.budget, state.keyring, state.is_leaving)
    return server.Listening(grpc_service, settings, certificate)


def _add_routes(app: FastAPI, state: _State) -> None:
    core, settings, receiver = state.core, state.settings, state.receiver
    inference = state.inference
    app.include_router(classify.router(receiver, settings))
    app.include_router(explain.router(receiver, settings))
    app.include_router(embed.router(receiver, settings))
    app.include_router(model_routes.router(core, settings))
    app.include_router(open_inference_metadata.router(inference, state.is_leaving))
    app.include_router(open_inference.router(inference, state.budget, receiver.stages))
    app.include_router(health.router(core, state.is_leaving))
    app.include_router(page.router())
    app.include_router(docs.router())
    for router in adapters.chosen(Adapter(receiver, settings, state.is_leaving)):
        app.include_router(router)
    problem_details.install(app, core.metrics)


def _add_middleware(app: FastAPI, state: _State) -> None:
    """Add middleware, innermost first: the last one added is the first to see a request."""
    settings, core, metrics = state.settings, state.core, state.core.metrics
    app.add_middleware(EarlyAdmission, core=core, settings=settings)
    if state.keyring:
        app.add_middleware(Authentication, keyring=state.keyring, core=core)
        auth.install(app)
    app.add_middleware(ServerErrorMiddleware, handler=problem_details.on_bug)
    if settings.cors_origins:
        more_headers = filter(None, (settings.cors_headers or "").split(","))
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=("GET", "POST"),
            allow_headers=(*_REQUEST_HEADERS, *more_headers),
            expose_headers=_RESPONSE_HEADERS,
        )
    if settings.probe_port:
        app.add_middleware(ProbePort, probe_port=settings.probe_port)
    app.add_middleware(HeadMethod)
    app.add_middleware(RequestLog, metrics=metrics, is_leaving=state.is_leaving)
