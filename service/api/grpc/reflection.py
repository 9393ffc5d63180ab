"""Reflection: what grpcurl and other tools ask to learn of the services; needs no key."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.api.grpc.open_streams import Streams

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_MOST = 16  # streams
_SECONDS = 10.0  # of one

_Asked = reflection_pb2.ServerReflectionRequest
_Told = reflection_pb2.ServerReflectionResponse
_Context = aio.ServicerContext[_Asked, _Told]


class Reflection:
    """Describes the services of these names, whose messages are in a pool."""

    def __init__(self, pool: DescriptorPool, names: Collection[str]) -> None:
        for known in (health_pb2, reflection_pb2):
            pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        described: Any = reflection.aio.ReflectionServicer  # without types
        self._servicer = described([*names, NAMES[1]], pool)
        self._streams = Streams(_MOST)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Give what a server is to call; both versions of the service have the same messages."""
        method = grpc.stream_stream_rpc_method_handler(
            self._answer,
            request_deserializer=_Asked.FromString,
            response_serializer=_Told.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in NAMES
        ]

    async def _answer(
        self, asked: AsyncIterator[_Asked], context: _Context
    ) -> AsyncIterator[_Told]:
        async with self._streams.one(context):
            try:
                async with asyncio.timeout(_SECONDS):
                    async for told in self._servicer.ServerReflectionInfo(asked, context):
                        yield told
            except TimeoutError:
                await context.abort(
                    StatusCode.DEADLINE_EXCEEDED, f"a stream may last {_SECONDS:g} s"
                )
