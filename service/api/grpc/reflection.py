"""gRPC server reflection, for grpcurl and other tools; needs no API key."""

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

_MAX_STREAMS = 16
_SECONDS = 10.0  # of a stream

_Request = reflection_pb2.ServerReflectionRequest
_Response = reflection_pb2.ServerReflectionResponse
_Context = aio.ServicerContext[_Request, _Response]


class Reflection:
    """Describes the services of these names with a pool of descriptors."""

    def __init__(self, pool: DescriptorPool, names: Collection[str]) -> None:
        for module in (health_pb2, reflection_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        servicer: Any = reflection.aio.ReflectionServicer  # without types
        self._servicer = servicer([*names, NAMES[1]], pool)
        self._streams = Streams(_MAX_STREAMS)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Give a server's handlers; both versions of the service have the same messages."""
        method = grpc.stream_stream_rpc_method_handler(
            self._answer,
            request_deserializer=_Request.FromString,
            response_serializer=_Response.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in NAMES
        ]

    async def _answer(
        self, requests: AsyncIterator[_Request], context: _Context
    ) -> AsyncIterator[_Response]:
        async with self._streams.stream(context):
            try:
                async with asyncio.timeout(_SECONDS):
                    async for response in self._servicer.ServerReflectionInfo(requests, context):
                        yield response
            except TimeoutError:
                await context.abort(
                    StatusCode.DEADLINE_EXCEEDED, f"a stream may last {_SECONDS:g} s"
                )
