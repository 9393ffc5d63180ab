"""The HTTP body of a request: JSON, and the binary tensors that may follow it."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api import parameters
from service.api.open_inference.infer_request import InferRequest, RequestedOutput, is_whole
from service.api.open_inference.tensors import OUTPUT, InputTensor
from service.errors import InvalidParameter, MalformedRequest

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before binary tensors
MAX_VALUES = 1_000_000  # in JSON, where a value costs 30 times what it does in a binary tensor

_DECIMAL = re.compile(r"[0-9]{1,12}")


class Strict(BaseModel):
    """JSON of the declared types; unknown fields are ignored."""

    model_config = ConfigDict(strict=True)


Parameters = Annotated[dict[str, Any], Field(description="of an extension, by name")]


class Input(Strict):
    """One tensor of a request; its values are `data`, or binary after the JSON."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(examples=[[1]])]
    parameters: Parameters = {}
    data: Annotated[
        list[Any] | None,
        Field(description="flat or nested; of BYTES, strings in base64, since JSON has no bytes"),
    ] = None


class Output(Strict):
    """An output that is asked for."""

    name: Annotated[str, Field(examples=[OUTPUT])]
    parameters: Parameters = {}


class Body(Strict):
    """The JSON of a request."""

    id: Annotated[str, Field(description="comes back with the answer", examples=["42"])] = ""
    parameters: Parameters = {}
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[Output] = []


def parse(body: bytes, header_length: str | None = None) -> InferRequest:
    """Parse a body; `header_length` is the value of its `HEADER_LENGTH` header, if any.

    Raises `InvalidParameter`, `MalformedRequest` or `TooLarge`.
    """
    whole = memoryview(body)
    end = len(body)
    if header_length is not None:
        if not _DECIMAL.fullmatch(header_length):
            raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes")
        end = int(header_length)
        if end > len(body):
            raise MalformedRequest(f"{HEADER_LENGTH} is over the {len(body)} bytes of the body")
    parsed = _json(bytes(whole[:end]))
    binary = _Binary(whole[end:])
    inputs = [
        InputTensor(tensor.name, tensor.datatype, tensor.shape, binary.values(tensor))
        for tensor in parsed.inputs
    ]
    binary.check()
    outputs = [RequestedOutput(output.name, output.parameters) for output in parsed.outputs]
    return InferRequest(parsed.id, parsed.parameters, inputs, outputs)


def _json(text: bytes) -> Body:
    parameters.check_values(text, MAX_VALUES, "send a binary tensor")
    return parameters.parse_json(Body, text)


class _Binary:
    """The bytes after the JSON, consumed in the order of the inputs."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def values(self, tensor: Input) -> memoryview | Sequence[Any]:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if tensor.data is None:
                raise InvalidParameter("an input has neither data nor a binary_data_size")
            return tensor.data
        if tensor.data is not None:
            raise InvalidParameter("an input has both data and a binary_data_size")
        if not is_whole(size, 0) or size > len(self._rest):
            raise MalformedRequest("binary_data_size is not the size of what follows the JSON")
        values, self._rest = self._rest[:size], self._rest[size:]
        return values

    def check(self) -> None:
        if self._rest:
            raise MalformedRequest(
                f"{len(self._rest)} bytes after the JSON are of no input's binary_data_size"
            )
