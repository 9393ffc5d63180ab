"""The Open Inference Protocol: its requests to images, and probabilities to its answers.

Version 2 of the protocol, as KServe and Triton speak it, over HTTP and gRPC, with two of Triton's
extensions: binary tensors, and classification. Everything that a request says is checked against
the bytes that it has, before anything of the size that it says is made.
"""

import binascii
import difflib
import itertools
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidParameter, MalformedRequest, TooLarge
from service.imaging.crops import CROP
from service.imaging.image_decoder import ImageInput
from service.settings import AUTO, PlanName

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before binary tensors
EXTENSIONS = ("binary_tensor_data", "classification")
PLATFORM = "pytorch_safetensors"
OUTPUT = "probabilities"

MOST_VALUES = 1_000_000  # in JSON, where a value costs 30 times what it does in a binary tensor

_BRACKETS = b",[{"  # each value of JSON, but the first, follows one of these
_PIECE = 512 * 1024  # bytes that are gone through at once; a multiple of 4
_LENGTH = struct.Struct("<I")  # of an element of BYTES, before it
_MICROSECONDS = 1e-6
_DATA_URL = "data:"
_LONGEST_TYPE = 256  # characters of a data URL before its data
_LINK = re.compile(r"(https?|file|blob|ftp|s3|gs):", re.IGNORECASE)
_PARAMETERS = ("views", "timeout", "binary_data_output")  # of a request
_MOST_NAMES = 32  # of parameters that are looked at
_DECIMAL = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as metadata tells of it; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


IMAGE = Described("image", "BYTES", (-1,))
PIXELS = Described("pixels", "UINT8", (-1, -1, -1, 3))
TENSOR = Described("tensor", "FP32", (-1, 3, CROP, CROP))
INPUTS = (IMAGE, PIXELS, TENSOR)


def output(classes: int) -> Described:
    """Describe what a model with so many classes answers."""
    return Described(OUTPUT, "FP32", (-1, classes))


# A request, whichever way it came.


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as it came: what it says it is, and its values, raw or one by one."""

    name: str
    datatype: str
    shape: Sequence[int]
    values: memoryview | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Requested:
    """An output that is asked for."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to infer, as it came."""

    id: str
    parameters: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Requested]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request comes down to.

    `seconds` and `views` are nothing where the request leaves them to the server; `labels` is 0
    if it wants probabilities, else how many of the most probable labels.
    """

    id: str
    images: tuple[ImageInput, ...]
    views: str | None
    seconds: float | None
    labels: int
    is_binary: bool


def understand(request: Request, most: int) -> Asked:
    """Check a request for at most so many images.

    Raises `InvalidParameter`, `MalformedRequest` or `TooLarge`.
    """
    if len(request.inputs) != 1:
        names = ", ".join(each.name for each in INPUTS)
        raise InvalidParameter(f"the request has {len(request.inputs)} inputs; send one of {names}")
    _check_names(request.parameters)
    images = _images(request.inputs[0], most)
    return Asked(
        request.id,
        images,
        _views(request.parameters.get("views"), request.inputs[0]),
        _seconds(request.parameters.get("timeout")),
        *_output(request),
    )


def _check_names(parameters: Mapping[str, Any]) -> None:
    """Refuse a name that is nearly one of ours; all others are for other servers, and ignored."""
    for name in itertools.islice(parameters, _MOST_NAMES):
        near = difflib.get_close_matches(name.lower()[:64], _PARAMETERS, n=1, cutoff=0.8)
        if near and name not in _PARAMETERS:
            raise InvalidParameter(f"there is no parameter {name!r}; did you mean {near[0]}?")


def _views(asked: object, tensor: Tensor) -> str | None:
    if asked is not None and asked not in (known := (*get_args(PlanName), AUTO)):
        raise InvalidParameter(f"the parameter views is to be one of {', '.join(known)}")
    if tensor.name != TENSOR.name:
        return None if asked is None else str(asked)
    if asked not in {None, "single"}:
        raise InvalidParameter("a tensor is one view of an image; ask for the views `single`")
    return "single"


def _seconds(timeout: object) -> float | None:
    if timeout is None:
        return None
    if not _is_whole(timeout, 0):
        raise InvalidParameter("the parameter timeout is to be a whole number of microseconds")
    return timeout * _MICROSECONDS or None  # none is what Triton's clients mean by 0


def _output(request: Request) -> tuple[int, bool]:
    """Give how many labels are asked for, 0 if it is probabilities; tell if they are binary."""
    is_binary = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return 0, is_binary
    if [each.name for each in request.outputs] != [OUTPUT]:
        raise InvalidParameter(f"there is one output, {OUTPUT}; ask for it once, or for none")
    parameters = request.outputs[0].parameters
    labels = parameters.get("classification", 0)
    if labels != 0 and not _is_whole(labels, 1):
        raise InvalidParameter("the parameter classification is to be how many labels")
    return labels, _flag(parameters, "binary_data", default=is_binary)


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"the parameter {name} is to be true or false")
    return value


def _is_whole(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


# Tensors to images.


def _images(tensor: Tensor, most: int) -> tuple[ImageInput, ...]:
    described = next((each for each in INPUTS if each.name == tensor.name), None)
    if described is None:
        names = ", ".join(each.name for each in INPUTS)
        raise InvalidParameter(f"there is no such input; there are {names}")
    if tensor.datatype != described.datatype:
        raise InvalidParameter(f"{tensor.name} is to be {described.datatype}")
    shape = _shape(tensor, described)
    if shape[0] > most:
        raise TooLarge(f"the request has {shape[0]} images and may have {most}")
    if described is IMAGE:
        return tuple(_encoded(tensor.values, shape[0]))
    kind: type[np.uint8 | np.float32] = np.uint8 if described is PIXELS else np.float32
    return tuple(_array(tensor.values, shape, kind))


def _shape(tensor: Tensor, described: Described) -> tuple[int, ...]:
    """Give the shape with its rows first, where there is but one and the request leaves it out."""
    shape = tuple(tensor.shape)
    if described is IMAGE and shape[1:] == (1,):
        shape = shape[:1]
    if described is PIXELS and len(shape) == len(PIXELS.shape) - 1:
        shape = (1, *shape)
    fits = len(shape) == len(described.shape) and all(
        size >= 1 and wanted in {-1, size}
        for size, wanted in zip(shape, described.shape, strict=True)
    )
    if not fits:
        wanted = list(described.shape)
        raise InvalidParameter(f"the shape of {tensor.name} is to be {wanted}, -1 being 1 or more")
    return shape


def _encoded(values: memoryview | Sequence[Any], count: int) -> list[bytes]:
    if isinstance(values, memoryview):
        images = _elements(values, count)
    else:
        images = [_bytes(value) for value in _flat(values)]
    if len(images) != count:
        raise InvalidParameter(f"image has {len(images)} elements and its shape says {count}")
    if not all(images):
        raise MalformedRequest("an image is empty; send its bytes")
    return images


def _elements(raw: memoryview, most: int) -> list[bytes]:
    """Part BYTES as they are sent raw: each element after its length."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else math.inf
        if end > len(raw) or len(found) == most:
            raise MalformedRequest("the elements of image and their lengths do not go together")
        at = int(end)
        found.append(bytes(raw[start:at]))
    return found


def _bytes(value: object) -> bytes:
    """Give an image: itself, or by its base64, since JSON has no bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidParameter("in JSON the elements of image are to be base64 strings")
    if _LINK.match(value):
        raise InvalidParameter("an element of image is a URL; send the image itself, in base64")
    start = 0
    if value[: len(_DATA_URL)].lower() == _DATA_URL:
        start = value.find(",", 0, _LONGEST_TYPE) + 1
        if not value[:start].lower().endswith(";base64,"):
            raise InvalidParameter("an element of image is a data URL without base64; send base64")
    return _base64(value[start:])


def _base64(value: str) -> bytes:
    """Decode base64, in lines or not."""
    try:
        return _decoded(value)
    except ValueError:  # that of a program that breaks lines, or none
        spaceless = "".join(value.split())
    try:
        return _decoded(spaceless)
    except ValueError as error:
        raise InvalidParameter(
            "an element of image is not base64, as it has to be in JSON"
        ) from error


def _decoded(value: str) -> bytes:
    """Decode base64 without spaces piece by piece, between which other threads go on."""
    whole = []
    for start in range(0, len(value), _PIECE):
        piece = value[start : start + _PIECE]
        whole.append(binascii.a2b_base64(piece, strict_mode=True))
        if start + _PIECE < len(value) and len(whole[-1]) != len(piece) // 4 * 3:
            raise ValueError("there is something after the padding")
    return b"".join(whole)


def _array(
    values: memoryview | Sequence[Any], shape: tuple[int, ...], kind: type[np.uint8 | np.float32]
) -> npt.NDArray[Any]:
    count, dtype = math.prod(shape), np.dtype(kind).newbyteorder("<")
    if isinstance(values, memoryview):
        if len(values) != count * dtype.itemsize:
            raise InvalidParameter(
                f"the shape says {count * dtype.itemsize} bytes and there are {len(values)}"
            )
        return np.frombuffer(values, dtype).reshape(shape)
    listed = _flat(values)
    if len(listed) != count:
        raise InvalidParameter(f"the shape says {count} values and there are {len(listed)}")
    return _numbers(listed, kind).reshape(shape)


def _numbers(listed: Sequence[Any], kind: type[np.uint8 | np.float32]) -> npt.NDArray[Any]:
    allowed = {int} if kind is np.uint8 else {int, float}
    if not {*map(type, listed)} <= allowed:
        raise InvalidParameter("the data are to be numbers of the tensor's type")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused where it is used
            return (
                np.array(listed, np.float64).astype(kind)
                if kind is np.float32
                else np.array(listed, kind)
            )
    except OverflowError as error:
        raise InvalidParameter("the data are to be numbers of the tensor's type") from error


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    """Give the values of lists in lists; raises `InvalidParameter` where only some are lists."""
    while values and isinstance(values[0], list):
        if not all(isinstance(value, list) for value in values):
            raise InvalidParameter("the data are neither flat nor evenly nested")
        values = [*itertools.chain.from_iterable(values)]
    return values


# JSON.


class Strict(BaseModel):
    """JSON as it is said to be, with more in it than is known here."""

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


def parse(body: bytes, header_length: str | None = None) -> Request:
    """Read a request's body; `header_length` is what its `HEADER_LENGTH` says, if anything.

    Raises `InvalidParameter`, `MalformedRequest` or `TooLarge`.
    """
    whole = memoryview(body)
    ends = len(body)
    if header_length is not None:
        if not _DECIMAL.fullmatch(header_length):
            raise MalformedRequest(f"{HEADER_LENGTH} is to be a number of bytes")
        ends = int(header_length)
        if ends > len(body):
            raise MalformedRequest(f"{HEADER_LENGTH} is over the {len(body)} bytes of the body")
    described = _json(bytes(whole[:ends]))
    binary = _Binary(whole[ends:])
    inputs = [
        Tensor(each.name, each.datatype, each.shape, binary.values(each))
        for each in described.inputs
    ]
    binary.check()
    outputs = [Requested(each.name, each.parameters) for each in described.outputs]
    return Request(described.id, described.parameters, inputs, outputs)


def _json(text: bytes) -> Body:
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    if sum(len(one) - len(one.translate(None, _BRACKETS)) for one in pieces) > MOST_VALUES:
        raise TooLarge(f"over {MOST_VALUES} values are too many for JSON; send a binary tensor")
    try:
        return Body.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedRequest(f"the body: {first['msg']}") from error
        where = ".".join(str(part) for part in first["loc"][:4] if part != "parameters")
        raise InvalidParameter(f"{where or 'the body'}: {first['msg']}") from error


class _Binary:
    """The bytes after the JSON, given out in the order of the inputs."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def values(self, described: Input) -> memoryview | Sequence[Any]:
        size = described.parameters.get("binary_data_size")
        if size is None:
            if described.data is None:
                raise InvalidParameter("an input has neither data nor a binary_data_size")
            return described.data
        if described.data is not None:
            raise InvalidParameter("an input has both data and a binary_data_size")
        if not _is_whole(size, 0) or size > len(self._rest):
            raise MalformedRequest("binary_data_size is not the size of what follows the JSON")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def check(self) -> None:
        if self._rest:
            raise MalformedRequest(
                f"{len(self._rest)} bytes after the JSON belong to no input: binary_data_size says"
            )


# Answers.


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request is answered with: probabilities (n, classes) or n rankings of labels."""

    id: str
    model: str
    version: str
    parameters: Mapping[str, str]
    values: npt.NDArray[np.float32] | Sequence[Sequence[str]]

    @property
    def datatype(self) -> str:
        """The output's type, as the protocol calls it."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    @property
    def shape(self) -> list[int]:
        """The output's shape: a row for each image."""
        return [len(self.values), len(self.values[0])]

    @property
    def elements(self) -> list[bytes]:
        """The labels one after the other, in UTF-8."""
        return [label.encode() for row in self.values for label in row]

    @property
    def raw(self) -> bytes:
        """The values as binary tensors have them."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("<f4", copy=False).tobytes()
        return b"".join(_LENGTH.pack(len(each)) + each for each in self.elements)

    @property
    def flat(self) -> list[Any]:
        """The values as JSON has them."""
        if isinstance(self.values, np.ndarray):
            return self.values.ravel().tolist()
        return [*itertools.chain.from_iterable(self.values)]


def told(label: str, index: int, probability: float) -> str:
    """Say a label as the classification extension does."""
    return f"{probability:.8f}:{index}:{label}"


def body(answered: Answered, *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """Give the JSON of an answer and what follows it, which is nothing unless it is binary."""
    raw = answered.raw if is_binary else b""
    values = (
        {"parameters": {"binary_data_size": len(raw)}} if is_binary else {"data": answered.flat}
    )
    out = {"name": OUTPUT, "datatype": answered.datatype, "shape": answered.shape, **values}
    named = {"model_name": answered.model, "model_version": answered.version}
    identity = {"id": answered.id} if answered.id else {}
    return {**named, **identity, "parameters": dict(answered.parameters), "outputs": [out]}, raw
