"""The Open Inference Protocol over gRPC, in the event loop that serves HTTP."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, Self

import grpc
from grpc import StatusCode, aio

from service.api import problem_details
from service.api.auth.api_keys import Keyring
from service.api.grpc import health, messages
from service.api.grpc.health import Health
from service.api.grpc.messages import Messages
from service.api.grpc.receiving import Receiving
from service.api.grpc.reflection import Reflection
from service.api.grpc.status_codes import STATUS
from service.api.grpc.tls import Certificate
from service.api.middleware import auth, request_log, security_headers
from service.api.open_inference import codec
from service.api.open_inference.handler import Inference
from service.api.uploads import Budget
from service.errors import (
    CannotListen,
    ClientDisconnected,
    RateLimited,
    ServiceError,
    Unauthorized,
    Unavailable,
)
from service.serving import request_stats
from service.settings import Settings

logger = logging.getLogger(__name__)

_CALLS = 256  # at once; few of them at a time are received
_PING_MS = 1000  # milliseconds between two pings of a client; one that pings more often is ended
_OPEN = frozenset({"ServerLive", "ServerReady"})  # to those without a key, as probes are
_PRIORITY = security_headers.PRIORITY.encode()
_OK = 200
_BUG = 500

Context = aio.ServicerContext[bytes, bytes]


@dataclass(slots=True)
class _Call:
    """A call that is being answered: what the log and the metrics will say of it."""

    method: str
    headers: Mapping[bytes, bytes]
    started: float = field(default_factory=time.monotonic)
    status: int = _BUG  # as HTTP has it, so that one rule is for both
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The call's name, which its caller may have given."""
        return str(self.notes["id"])

    @property
    def is_background(self) -> bool:
        """Tell whether nobody waits for the answer."""
        return security_headers.is_background(self.headers.get(_PRIORITY, b"").decode("latin-1"))


class Service:
    """Answers the protocol's calls."""

    def __init__(
        self,
        inferring: Inference,
        budget: Budget,
        keyring: Keyring | None,
        is_leaving: Callable[[], bool],
    ) -> None:
        self._inferring, self._keyring = inferring, keyring
        self._catalogue, self._metrics = inferring.model_registry, inferring.metrics
        self._is_leaving = is_leaving
        self._receiving = Receiving(budget, inferring.settings)
        self._messages = Messages()
        protocol_name = self._messages.service.full_name
        self._health = Health(self._is_serving, {"", protocol_name})
        self._reflection = Reflection(self._messages.pool, {protocol_name, health.NAME})

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Give what a server is to call: the protocol, health checks and reflection."""
        return [self._handler_of_protocol(), self._health.handler(), *self._reflection.handlers()]

    def end_streams(self) -> None:
        """Have streams that would go on for ever end, so that a stop need not wait for them."""
        self._health.end()

    def _handler_of_protocol(self) -> grpc.GenericRpcHandler:
        described = self._messages.service
        codes = {_OK, *problem_details.STATUS.values()}
        self._metrics.expect(_route("ModelInfer"), "POST", codes)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            # To a client it is unary; here its message is received when there is memory for it.
            method.name: grpc.stream_unary_rpc_method_handler(self._handler(method.name))
            for method in described.methods
        }
        return grpc.method_handlers_generic_handler(described.full_name, handlers)

    def _is_serving(self) -> bool:
        return self._catalogue.is_ready and not self._is_leaving()

    def _handler(self, method: str) -> Any:
        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            return await self._handled(method, messages, context)

        return handle

    async def _handled(
        self, method: str, messages: AsyncIterator[bytes], context: Context
    ) -> bytes:
        call = _Call(method, _headers(context))
        call.notes["id"] = request_log.named(
            call.headers.get(b"x-request-id", b"").decode("latin-1")
        )
        self._metrics.in_flight(1)
        try:
            found = await self._answer(call, messages, context)
        except asyncio.CancelledError:
            call.status = problem_details.STATUS[ClientDisconnected]
            raise
        finally:
            self._metrics.in_flight(-1)
            self._tell(call)
        if isinstance(found, ServiceError):
            await context.abort(STATUS[type(found)], str(found), _trailing(call, found))
        if found is None:
            await context.abort(StatusCode.INTERNAL, "an internal error; it was logged")
        context.set_trailing_metadata(_trailing(call))
        return found

    async def _answer(
        self, call: _Call, messages: AsyncIterator[bytes], context: Context
    ) -> bytes | ServiceError | None:
        """Give the answer, the error, or nothing after what nobody expected."""
        try:
            self._admit(call)
            async with self._receiving.message(messages) as data:
                reading = partial(self._messages.read, f"{call.method}Request", data)
                asked = await self._inferring.parse(len(data), reading)
                answer = await self._methods[call.method](self, call, asked, len(data), context)
        except ServiceError as error:
            self._metrics.rejected(error, background=call.is_background)
            call.notes["code"], call.status = error.code, problem_details.STATUS[type(error)]
            return error
        except Exception:
            logger.exception("%s failed", call.method)
            return None
        call.status = _OK
        message: bytes = answer.SerializeToString()
        return message

    def _admit(self, call: _Call) -> None:
        """Raise what `service.api.middleware.auth.Authentication` refuses with."""
        if self._keyring is None or call.method in _OPEN:
            return
        self._keyring.refresh(call.started)
        found = self._keyring.find(auth.key(call.headers))
        if found is None:
            raise Unauthorized(auth.NO_KEY)
        caller, quota = found
        call.notes["key"] = caller.name
        wait = quota.take(call.started)
        self._metrics.called(caller.name, "rate_limited" if wait else "admitted")
        if wait:
            raise RateLimited(auth.USED_UP, retry_after=wait)

    def _tell(self, call: _Call) -> None:
        seconds = time.monotonic() - call.started
        route, background = _route(call.method), call.is_background
        self._metrics.request(route, "POST", call.status, seconds, {}, background=background)
        about = {"route": route, "status": call.status, "seconds": round(seconds, 6)}
        level = logging.DEBUG if call.method in _OPEN else logging.INFO
        extra = {"request": {"method": "POST", **about, **call.notes}}
        logger.log(level, "%s %d", route, call.status, extra=extra)

    # The methods.

    async def _live(self, *_: Any) -> Any:
        return self._messages.make(
            "ServerLiveResponse", live=self._catalogue.failure_reason is None
        )

    async def _ready(self, *_: Any) -> Any:
        return self._messages.make("ServerReadyResponse", ready=self._is_serving())

    async def _model_ready(self, _: _Call, asked: Any, *__: Any) -> Any:
        is_ready = self._inferring.works(asked.name, asked.version)
        return self._messages.make("ModelReadyResponse", ready=is_ready)

    async def _server(self, *_: Any) -> Any:
        return self._messages.make(
            "ServerMetadataResponse",
            name="googlenet-service",
            version=metadata.version("googlenet-service"),
            extensions=codec.EXTENSIONS,
        )

    async def _model(self, _: _Call, asked: Any, *__: Any) -> Any:
        ensemble = self._inferring.ensemble(asked.name, asked.version)
        return self._messages.make(
            "ModelMetadataResponse",
            name=asked.name,
            versions=[ensemble.version],
            platform=codec.PLATFORM,
            inputs=[_described(each) for each in codec.INPUTS],
            outputs=[_described(codec.output(len(ensemble.labels)))],
        )

    async def _index(self, _: _Call, asked: Any, *__: Any) -> Any:
        models = self._inferring.index(only_ready=asked.ready)
        return self._messages.make(
            "RepositoryIndexResponse", models=[asdict(model) for model in models]
        )

    async def _infer(self, call: _Call, asked: Any, nbytes: int, context: Context) -> Any:
        wish = await self._inferring.understand(nbytes, partial(messages.request, asked))
        deadlines = (context.time_remaining(), wish.seconds)
        seconds = min((one for one in deadlines if one is not None), default=None)
        found = await self._inferring.infer(
            asked.model_name,
            asked.model_version,
            wish,
            seconds=seconds,
            background=call.is_background,
        )
        call.notes |= request_stats.add_up(found.answers).notes(found.plan, 0.0)
        return self._messages.answer(found.answered, is_raw=bool(asked.raw_input_contents))

    _methods: Mapping[str, Callable[..., Awaitable[Any]]] = {
        "ServerLive": _live,
        "ServerReady": _ready,
        "ModelReady": _model_ready,
        "ServerMetadata": _server,
        "ModelMetadata": _model,
        "ModelInfer": _infer,
        "RepositoryIndex": _index,
    }


def _route(method: str) -> str:
    """Give the HTTP/2 path of a call: what tells it from others in metrics."""
    return f"/inference.GRPCInferenceService/{method}"


def _headers(context: Context) -> dict[bytes, bytes]:
    return {
        str(key).encode(): value if isinstance(value, bytes) else str(value).encode("latin-1")
        for key, value in context.invocation_metadata() or ()
    }


def _trailing(call: _Call, error: ServiceError | None = None) -> tuple[tuple[str, str], ...]:
    """Name the call, and say when to come again: to people, and to gRPC's own retries."""
    if not isinstance(error, Unavailable):
        return (("x-request-id", call.id),)
    return (
        ("x-request-id", call.id),
        ("retry-after", str(max(1, math.ceil(error.retry_after)))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),
    )


def _described(tensor: codec.Described) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


class Listening:
    """Listens while it is entered, or until it is told to leave; raises `CannotListen`.

    Over TLS if it is given a certificate.
    """

    def __init__(
        self, service: Service, settings: Settings, certificate: Certificate | None = None
    ) -> None:
        self._service, self._settings, self._certificate = service, settings, certificate
        self._server: aio.Server | None = None
        self._stopping: list[asyncio.Task[None]] = []  # at most one

    async def __aenter__(self) -> Self:
        self._server = _bound(self._service, self._settings, self._certificate)
        await self._server.start()
        how = "over TLS" if self._certificate else "without encryption"
        logger.info(
            "gRPC is on port %d of %s, %s", self._settings.grpc_port, self._settings.host, how
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
        await asyncio.gather(*self._stopping)

    def leave(self) -> None:
        """Take no more calls; those in flight have their time to be answered."""
        if self._server and not self._stopping:
            self._service.end_streams()
            stop = self._server.stop(self._settings.grace_seconds)
            self._stopping.append(asyncio.get_running_loop().create_task(stop))


def _bound(service: Service, settings: Settings, certificate: Certificate | None) -> aio.Server:
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_metadata_size", settings.max_header_bytes),
            ("grpc.max_connection_idle_ms", settings.keep_alive_seconds * 1000),
            # Clients ping to keep a connection through a NAT; 10 s is usual, 5 minutes the default.
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),  # else a second server would share the port unnoticed
        ],
        maximum_concurrent_rpcs=_CALLS,
    )
    server.add_generic_rpc_handlers(service.handlers())
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"{host}:{settings.grpc_port}"
    try:
        if certificate:
            server.add_secure_port(where, _credentials(certificate))
        else:
            server.add_insecure_port(where)
    except RuntimeError as error:
        port = f"port {settings.grpc_port} of {settings.host}"
        raise CannotListen(f"{port} is not to be had for gRPC") from error
    return server


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(certificate.key, certificate.chain)],
        certificate.callers,
        require_client_auth=certificate.callers is not None,
    )
