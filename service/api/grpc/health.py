"""grpc.health.v1: what load balancers, Kubernetes and gRPC's own clients ask."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from typing import Any

import grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2

from service.api.grpc.open_streams import Streams

NAME = "grpc.health.v1.Health"

_MOST = 32  # streams that watch
_LOOK = 1.0  # seconds from one look at the state, which nothing announces, to the next

_Asked = health_pb2.HealthCheckRequest
_Told = health_pb2.HealthCheckResponse
_Context = aio.ServicerContext[_Asked, _Told]


class Health:
    """Answers for the services of these names, as /readyz does; needs no key."""

    def __init__(self, is_serving: Callable[[], bool], names: Collection[str]) -> None:
        self._is_serving, self._names = is_serving, names
        self._streams = Streams(_MOST)
        self._ended = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Give what a server is to call."""
        codecs: dict[str, Any] = {
            "request_deserializer": _Asked.FromString,
            "response_serializer": _Told.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **codecs),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codecs),
            },
        )

    def end(self) -> None:
        """Say NOT_SERVING to those that watch, and end their streams."""
        self._ended.set()

    def _status(self, service: str) -> int:
        if service not in self._names:
            return _Told.SERVICE_UNKNOWN
        is_serving = self._is_serving() and not self._ended.is_set()
        return _Told.SERVING if is_serving else _Told.NOT_SERVING

    async def _check(self, asked: _Asked, context: _Context) -> _Told:
        status = self._status(asked.service)
        if status == _Told.SERVICE_UNKNOWN:
            names = ", ".join(sorted(filter(None, self._names)))
            await context.abort(StatusCode.NOT_FOUND, f"there is no such service; there is {names}")
        return _Told(status=status)

    async def _watch(self, asked: _Asked, context: _Context) -> AsyncIterator[_Told]:
        told = None
        async with self._streams.one(context):
            while True:
                is_last = self._ended.is_set()
                if (status := self._status(asked.service)) != told:
                    yield _Told(status=status)
                    told = status
                if is_last:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _LOOK)
