"""The protocol's messages, to what `service.api.open_inference.codec` knows and back.

They are made of `open_inference.binpb`, which protoc makes of `open_inference.proto`: it is data,
which any release of protobuf reads, where generated code is for the one that generated it. They
have a pool of their own, for other programs' descriptions of the same protocol.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from service.api.grpc import field_count
from service.api.grpc.field_count import Within
from service.api.open_inference import codec
from service.api.open_inference.codec import OUTPUT, Answered, Request, Requested, Tensor
from service.errors import MalformedRequest, TooLarge

FILE = "open_inference.binpb"

_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
_INPUTS, _IN_INPUT = 5, 5  # the numbers of the inputs in a request, and of the contents in one
_WITHIN: Within = {_INPUTS: {_IN_INPUT: {}}}
_MOST_FIELDS = 8192  # a few for each image, of which there are 1024 at most


class Messages:
    """Makes and reads messages, by their names."""

    def __init__(self) -> None:
        described = descriptor_pb2.FileDescriptorSet.FromString(
            resources.files(__package__).joinpath(FILE).read_bytes()
        )
        self.pool = pool = descriptor_pool.DescriptorPool()
        for file in described.file:
            pool.AddSerializedFile(file.SerializeToString())
        names = [file.name for file in described.file]
        self._classes = message_factory.GetMessageClassesForFiles(names, pool)
        self.service = pool.FindServiceByName("inference.GRPCInferenceService")

    def make(self, name: str, /, **fields: Any) -> Any:
        """Make a message."""
        return self._classes[f"inference.{name}"](**fields)

    def read(self, name: str, data: bytes) -> Any:
        """Read a message; raises `MalformedRequest` if it is none."""
        field_count.check(memoryview(data), _WITHIN, _MOST_FIELDS)
        try:
            return self._classes[f"inference.{name}"].FromString(data)
        except DecodeError as error:
            raise MalformedRequest("the message is broken or cut short") from error

    def answer(self, answered: Answered, *, is_raw: bool) -> Message:
        """Make the message of an answer; its values are raw where the request's were."""
        out = {"name": OUTPUT, "datatype": answered.datatype, "shape": answered.shape}
        values = {"raw_output_contents": [answered.raw]} if is_raw else {}
        contents = {} if is_raw else {"contents": {_CONTENTS[answered.datatype]: _values(answered)}}
        message: Message = self.make(
            "ModelInferResponse",
            model_name=answered.model,
            model_version=answered.version,
            id=answered.id,
            parameters={key: {"string_param": said} for key, said in answered.parameters.items()},
            outputs=[out | contents],
            **values,
        )
        return message


def _values(answered: Answered) -> list[Any]:
    return answered.flat if answered.datatype == "FP32" else answered.elements


def request(message: Any) -> Request:
    """Give what a message asks; raises `MalformedRequest` or `TooLarge`."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequest(f"{len(message.inputs)} inputs have {len(raw)} raw contents")
    inputs = [
        Tensor(
            each.name,
            each.datatype,
            [*each.shape],
            memoryview(raw[number]) if raw else _contents(each),
        )
        for number, each in enumerate(message.inputs)
    ]
    outputs = [Requested(each.name, _parameters(each.parameters)) for each in message.outputs]
    return Request(message.id, _parameters(message.parameters), inputs, outputs)


def _contents(tensor: Any) -> list[Any]:
    values = getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), ())
    if len(values) > codec.MOST_VALUES:
        raise TooLarge(f"over {codec.MOST_VALUES} values are too many; send the tensor raw")
    return [*values]


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in given.items()}
    return {name: getattr(given[name], field) for name, field in chosen.items() if field}
