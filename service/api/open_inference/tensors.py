"""Tensors of the Open Inference Protocol: their specifications, and input tensors to images.

What a tensor declares is checked against the bytes it has before anything of the declared size is
allocated.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.api import base64_image
from service.errors import InvalidParameter, MalformedRequest, TooLarge
from service.imaging.crops import CROP
from service.imaging.image_decoder import ImageInput
from service.models.ensemble import Ensemble
from service.serving.predictor import EMPTY

OUTPUT, FEATURES = "probabilities", "features"
LENGTH = struct.Struct("<I")  # of an element of BYTES, before it

_WRONG_NUMBERS = "the data must be numbers of the tensor's type"
_Number = type[np.uint8 | np.float32]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as model metadata describes it; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


IMAGE = TensorSpec("image", "BYTES", (-1,))
PIXELS = TensorSpec("pixels", "UINT8", (-1, -1, -1, 3))
TENSOR = TensorSpec("tensor", "FP32", (-1, 3, CROP, CROP))
INPUTS = (IMAGE, PIXELS, TENSOR)
INPUT_NAMES = ", ".join(spec.name for spec in INPUTS)


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input as received: what it declares, and its values, raw or one by one."""

    name: str
    datatype: str
    shape: Sequence[int]
    values: memoryview | Sequence[Any]


def outputs(ensemble: Ensemble) -> list[TensorSpec]:
    """Describe the outputs of a model; `features` only if it has them."""
    sizes = {OUTPUT: len(ensemble.labels), FEATURES: ensemble.channels}
    return [TensorSpec(name, "FP32", (-1, size)) for name, size in sizes.items() if size]


def images(tensor: InputTensor, max_images: int) -> tuple[ImageInput, ...]:
    """Read the images of a tensor: encoded bytes, (H, W, 3) uint8 or (3, 224, 224) float32.

    Raises `InvalidParameter`, `MalformedRequest` or `TooLarge`.
    """
    spec = next((spec for spec in INPUTS if spec.name == tensor.name), None)
    if spec is None:
        raise InvalidParameter(f"there is no such input; there are {INPUT_NAMES}")
    if tensor.datatype != spec.datatype:
        raise InvalidParameter(f"{tensor.name} must be {spec.datatype}")
    shape = _shape(tensor, spec)
    if shape[0] > max_images:
        raise TooLarge(f"the request has {shape[0]} images and may have {max_images}")
    if spec is IMAGE:
        return tuple(_encoded(tensor.values, shape[0]))
    return tuple(_array(tensor.values, shape, np.uint8 if spec is PIXELS else np.float32))


def _shape(tensor: InputTensor, spec: TensorSpec) -> tuple[int, ...]:
    """Give the shape with its rows first; one image of pixels may leave them out."""
    shape = tuple(tensor.shape)
    if spec is IMAGE and shape[1:] == (1,):
        shape = shape[:1]
    if spec is PIXELS and len(shape) == len(PIXELS.shape) - 1:
        shape = (1, *shape)
    fits = len(shape) == len(spec.shape) and all(
        size >= 1 and expected in {-1, size}
        for size, expected in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        expected = list(spec.shape)
        raise InvalidParameter(f"the shape of {tensor.name} must be {expected}, -1 being 1 or more")
    return shape


def _encoded(values: memoryview | Sequence[Any], count: int) -> list[bytes]:
    if isinstance(values, memoryview):
        elements = _raw_elements(values, count)
    else:
        elements = [
            value if isinstance(value, bytes) else base64_image.decode(value, "an element of image")
            for value in _flat(values)
        ]
    if len(elements) != count:
        raise InvalidParameter(f"image has {len(elements)} elements and its shape says {count}")
    if not all(elements):
        raise MalformedRequest(EMPTY)
    return elements


def _raw_elements(raw: memoryview, most: int) -> list[bytes]:
    """Split raw BYTES: each element follows its length."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + LENGTH.size
        end = start + LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else math.inf
        if end > len(raw) or len(elements) == most:
            raise MalformedRequest("the elements of image do not match their lengths")
        position = int(end)
        elements.append(bytes(raw[start:position]))
    return elements


def _array(
    values: memoryview | Sequence[Any], shape: tuple[int, ...], kind: _Number
) -> npt.NDArray[Any]:
    count, dtype = math.prod(shape), np.dtype(kind).newbyteorder("<")
    if isinstance(values, memoryview):
        if len(values) != count * dtype.itemsize:
            raise InvalidParameter(
                f"the shape says {count * dtype.itemsize} bytes and there are {len(values)}"
            )
        return np.frombuffer(values, dtype).reshape(shape)
    flat = _flat(values)
    if len(flat) != count:
        raise InvalidParameter(f"the shape says {count} values and there are {len(flat)}")
    return _numbers(flat, kind).reshape(shape)


def _numbers(flat: Sequence[Any], kind: _Number) -> npt.NDArray[Any]:
    is_float = kind is np.float32
    if not {*map(type, flat)} <= ({int, float} if is_float else {int}):
        raise InvalidParameter(_WRONG_NUMBERS)
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused where it is used
            return np.array(flat, np.float64 if is_float else kind).astype(kind, copy=False)
    except OverflowError as error:
        raise InvalidParameter(_WRONG_NUMBERS) from error


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    """Flatten nested lists; raises `InvalidParameter` where only some values are lists."""
    while values and isinstance(values[0], list):
        if not all(isinstance(value, list) for value in values):
            raise InvalidParameter("the data are neither flat nor evenly nested")
        values = [*itertools.chain.from_iterable(values)]
    return values
