"""The methods of the Open Inference Protocol's gRPC service: a request message to a response."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

from google.protobuf.message import Message

from service.api.grpc import messages
from service.api.grpc.call import Call
from service.api.grpc.messages import Messages
from service.api.open_inference import tensors
from service.api.open_inference.handler import EXTENSIONS, PLATFORM, Inference
from service.serving import request_stats


@dataclass(frozen=True, slots=True)
class Methods:
    """Handles a message of each method; raises `ServiceError`."""

    inference: Inference
    messages: Messages
    is_serving: Callable[[], bool]

    async def handle(self, call: Call, message: Any) -> Message:
        """Handle the message of a call's method."""
        handlers: Mapping[str, Callable[[Call, Any], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._repository_index,
        }
        return await handlers[call.method](call, message)

    async def _server_live(self, *_: Any) -> Message:
        is_live = self.inference.status.failure_reason is None
        return self.messages.make("ServerLiveResponse", live=is_live)

    async def _server_ready(self, *_: Any) -> Message:
        return self.messages.make("ServerReadyResponse", ready=self.is_serving())

    async def _model_ready(self, _: Call, message: Any) -> Message:
        is_ready = self.inference.works(message.name, message.version)
        return self.messages.make("ModelReadyResponse", ready=is_ready)

    async def _server_metadata(self, *_: Any) -> Message:
        return self.messages.make(
            "ServerMetadataResponse",
            name="googlenet-service",
            version=metadata.version("googlenet-service"),
            extensions=EXTENSIONS,
        )

    async def _model_metadata(self, _: Call, message: Any) -> Message:
        ensemble = self.inference.ensemble(message.name, message.version)
        return self.messages.make(
            "ModelMetadataResponse",
            name=message.name,
            versions=[ensemble.version],
            platform=PLATFORM,
            inputs=[asdict(spec) for spec in tensors.INPUTS],
            outputs=[asdict(spec) for spec in tensors.outputs(ensemble)],
        )

    async def _repository_index(self, _: Call, message: Any) -> Message:
        models = self.inference.index(only_ready=message.ready)
        return self.messages.make(
            "RepositoryIndexResponse", models=[asdict(model) for model in models]
        )

    async def _model_infer(self, call: Call, message: Any) -> Message:
        request = await self.inference.validate(call.nbytes, partial(messages.request, message))
        timeouts = (call.context.time_remaining(), request.seconds)
        inferred = await self.inference.infer(
            message.model_name,
            message.model_version,
            request,
            seconds=min((seconds for seconds in timeouts if seconds is not None), default=None),
            background=call.is_background,
        )
        call.notes |= request_stats.add_up(inferred.answers).notes(inferred.plan, 0.0)
        return self.messages.response(inferred.response, is_raw=bool(message.raw_input_contents))
