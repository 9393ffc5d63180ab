"""The protocol's gRPC messages: made, parsed, and converted to requests and from responses.

Their descriptors are `open_inference.binpb`, which protoc makes of `open_inference.proto`: data
that any release of protobuf reads, where generated code needs the release that generated it. Their
pool is their own, for other programs' descriptors of the same protocol.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from service.api.grpc import field_count
from service.api.grpc.field_count import Nested
from service.api.open_inference.infer_request import InferRequest, RequestedOutput
from service.api.open_inference.infer_response import InferResponse, OutputTensor
from service.api.open_inference.json_request import MAX_VALUES
from service.api.open_inference.tensors import InputTensor
from service.errors import MalformedRequest, TooLarge

FILE = "open_inference.binpb"

_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
_INPUTS, _INPUT_CONTENTS = 5, 5  # field numbers of a request's inputs, and of an input's contents
_NESTED: Nested = {_INPUTS: {_INPUT_CONTENTS: {}}}
_MAX_FIELDS = 8192  # a few for each image, of which there are 1024 at most


class Messages:
    """Makes and parses messages, by their names."""

    def __init__(self) -> None:
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(
            resources.files(__package__).joinpath(FILE).read_bytes()
        )
        self.pool = pool = descriptor_pool.DescriptorPool()
        for file in descriptors.file:
            pool.AddSerializedFile(file.SerializeToString())
        names = [file.name for file in descriptors.file]
        self._classes = message_factory.GetMessageClassesForFiles(names, pool)
        self.service = pool.FindServiceByName("inference.GRPCInferenceService")

    def make(self, name: str, /, **fields: Any) -> Message:
        """Make a message."""
        message: Message = self._classes[f"inference.{name}"](**fields)
        return message

    def read(self, name: str, data: bytes) -> Any:
        """Parse a message; raises `MalformedRequest`."""
        field_count.check(memoryview(data), _NESTED, _MAX_FIELDS)
        try:
            return self._classes[f"inference.{name}"].FromString(data)
        except DecodeError as error:
            raise MalformedRequest("the message is broken or cut short") from error

    def response(self, response: InferResponse, *, is_raw: bool) -> Message:
        """Make the message of a response; its values are raw where the request's were."""
        raw = {"raw_output_contents": [one.raw for one in response.outputs]} if is_raw else {}
        parameters = {key: {"string_param": value} for key, value in response.parameters.items()}
        return self.make(
            "ModelInferResponse",
            model_name=response.model,
            model_version=response.version,
            id=response.id,
            parameters=parameters,
            outputs=[_output(one, is_raw=is_raw) for one in response.outputs],
            **raw,
        )


def request(message: Any) -> InferRequest:
    """Convert a message to a request; raises `MalformedRequest` or `TooLarge`."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequest(f"{len(message.inputs)} inputs have {len(raw)} raw contents")
    inputs = [
        InputTensor(
            tensor.name,
            tensor.datatype,
            [*tensor.shape],
            memoryview(raw[number]) if raw else _contents(tensor),
        )
        for number, tensor in enumerate(message.inputs)
    ]
    outputs = [
        RequestedOutput(output.name, _parameters(output.parameters)) for output in message.outputs
    ]
    return InferRequest(message.id, _parameters(message.parameters), inputs, outputs)


def _output(output: OutputTensor, *, is_raw: bool) -> dict[str, Any]:
    described = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    if is_raw:
        return described
    values = output.flat if output.datatype == "FP32" else output.elements
    return {**described, "contents": {_CONTENTS[output.datatype]: values}}


def _contents(tensor: Any) -> list[Any]:
    values = getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), ())
    if len(values) > MAX_VALUES:
        raise TooLarge(f"over {MAX_VALUES} values are too many; send the tensor raw")
    return [*values]


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], field) for name, field in fields.items() if field}
