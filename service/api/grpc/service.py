"""The Open Inference Protocol's gRPC service: authentication, memory, errors, metrics and log."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
from grpc import StatusCode

from service.api import statuses
from service.api.auth import authentication
from service.api.auth.api_keys import Keyring
from service.api.grpc import health
from service.api.grpc.call import OK, Call, Context
from service.api.grpc.health import Health
from service.api.grpc.messages import Messages
from service.api.grpc.methods import Methods
from service.api.grpc.receiving import Receiving
from service.api.grpc.reflection import Reflection
from service.api.open_inference.handler import Inference
from service.api.statuses import STATUS
from service.api.upload_budget import Budget
from service.errors import ClientDisconnected, ServiceError

logger = logging.getLogger(__name__)

_OPEN = frozenset({"ServerLive", "ServerReady"})  # without a key, as HTTP's probes


class Service:
    """Handles the protocol's calls, health checks and reflection."""

    def __init__(
        self,
        inference: Inference,
        budget: Budget,
        keyring: Keyring | None,
        is_leaving: Callable[[], bool],
    ) -> None:
        self._inference, self._keyring, self._is_leaving = inference, keyring, is_leaving
        self._metrics = inference.metrics
        self._receiving = Receiving(budget, inference.settings)
        self._messages = Messages()
        self._methods = Methods(inference, self._messages, self._is_serving)
        name = self._messages.service.full_name
        self._health = Health(self._is_serving, {"", name})
        self._reflection = Reflection(self._messages.pool, {name, health.NAME})

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Give a server's handlers: the protocol, health checks and reflection."""
        return [self._protocol(), self._health.handler(), *self._reflection.handlers()]

    def end_streams(self) -> None:
        """End health streams, which otherwise never end, so that a stop need not wait."""
        self._health.end()

    def _protocol(self) -> grpc.GenericRpcHandler:
        described = self._messages.service
        route = f"/{described.full_name}/ModelInfer"
        self._metrics.expect(route, "POST", {OK, *statuses.HTTP})
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            # Unary to a client; a stream here, to receive the message when there is memory for it.
            method.name: grpc.stream_unary_rpc_method_handler(self._handler(method.name))
            for method in described.methods
        }
        return grpc.method_handlers_generic_handler(described.full_name, handlers)

    def _is_serving(self) -> bool:
        return self._inference.status.is_ready and not self._is_leaving()

    def _handler(self, method: str) -> Any:
        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            return await self._handle(Call.of(method, context), messages)

        return handle

    async def _handle(self, call: Call, messages: AsyncIterator[bytes]) -> bytes:
        self._metrics.in_flight(1)
        try:
            result = await self._respond(call, messages)
        except asyncio.CancelledError:
            call.status = STATUS[ClientDisconnected].http
            raise
        finally:
            self._metrics.in_flight(-1)
            self._record(call)
        if isinstance(result, ServiceError):
            code = StatusCode[STATUS[type(result)].grpc]
            await call.context.abort(code, str(result), call.trailers(result))
        if result is None:
            await call.context.abort(StatusCode.INTERNAL, "an internal error; it was logged")
        call.context.set_trailing_metadata(call.trailers())
        return result

    async def _respond(
        self, call: Call, messages: AsyncIterator[bytes]
    ) -> bytes | ServiceError | None:
        """Give the response, the error, or None after an unexpected exception."""
        try:
            await self._authenticate(call)
            async with self._receiving.message(messages) as data:
                call.nbytes = len(data)
                read = partial(self._messages.read, f"{call.method}Request", data)
                message = await self._inference.parse(len(data), read)
                response = await self._methods.handle(call, message)
        except ServiceError as error:
            self._metrics.rejected(error, background=call.is_background)
            call.notes["code"], call.status = error.code, STATUS[type(error)].http
            return error
        except Exception:
            logger.exception("%s failed", call.method)
            return None
        call.status = OK
        return response.SerializeToString()

    async def _authenticate(self, call: Call) -> None:
        """Raise `Unauthorized` or `RateLimited`, as HTTP's middleware responds."""
        if self._keyring is None or call.method in _OPEN:
            return
        self._keyring.refresh(call.started)
        api_key = authentication.authenticate(self._keyring, call.headers)
        call.notes["key"] = api_key.name
        usage = await authentication.count(api_key, self._inference.core)
        if error := authentication.refusal(usage):
            raise error

    def _record(self, call: Call) -> None:
        """Count and log a call that has ended."""
        seconds = time.monotonic() - call.started
        background = call.is_background
        self._metrics.request(call.route, "POST", call.status, seconds, {}, background=background)
        fields = {"route": call.route, "status": call.status, "seconds": round(seconds, 6)}
        extra = {"request": {"method": "POST", **fields, **call.notes}}
        level = logging.DEBUG if call.method in _OPEN else logging.INFO
        logger.log(level, "%s %d", call.route, call.status, extra=extra)
