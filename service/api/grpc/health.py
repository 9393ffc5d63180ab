"""grpc.health.v1, for load balancers, Kubernetes and gRPC clients; needs no API key."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from typing import Any

import grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2

from service.api.grpc.open_streams import Streams

NAME = "grpc.health.v1.Health"

_MAX_STREAMS = 32  # of Watch
_POLL_SECONDS = 1.0  # between two checks of the state in Watch

_Request = health_pb2.HealthCheckRequest
_Response = health_pb2.HealthCheckResponse
_Context = aio.ServicerContext[_Request, _Response]


class Health:
    """Responds for the services of these names as /readyz does."""

    def __init__(self, is_serving: Callable[[], bool], names: Collection[str]) -> None:
        self._is_serving, self._names = is_serving, names
        self._streams = Streams(_MAX_STREAMS)
        self._ended = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Give a server's handler."""
        codecs: dict[str, Any] = {
            "request_deserializer": _Request.FromString,
            "response_serializer": _Response.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **codecs),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codecs),
            },
        )

    def end(self) -> None:
        """Send NOT_SERVING to open streams, and end them."""
        self._ended.set()

    def _status(self, service: str) -> int:
        if service not in self._names:
            return _Response.SERVICE_UNKNOWN
        is_serving = self._is_serving() and not self._ended.is_set()
        return _Response.SERVING if is_serving else _Response.NOT_SERVING

    async def _check(self, request: _Request, context: _Context) -> _Response:
        status = self._status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            names = ", ".join(sorted(filter(None, self._names)))
            await context.abort(StatusCode.NOT_FOUND, f"there is no such service; there is {names}")
        return _Response(status=status)

    async def _watch(self, request: _Request, context: _Context) -> AsyncIterator[_Response]:
        sent = None
        async with self._streams.stream(context):
            while True:
                is_last = self._ended.is_set()
                if (status := self._status(request.service)) != sent:
                    yield _Response(status=status)
                    sent = status
                if is_last:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _POLL_SECONDS)
