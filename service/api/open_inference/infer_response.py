"""The response to a request to infer, and its HTTP body."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.api.open_inference.tensors import LENGTH


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output: probabilities or features (n, size) float32, or n rankings of labels."""

    name: str
    values: npt.NDArray[np.float32] | Sequence[Sequence[str]]
    is_binary: bool = False  # whether it is binary over HTTP

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
        return b"".join(LENGTH.pack(len(element)) + element for element in self.elements)

    @property
    def flat(self) -> list[Any]:
        """The values as JSON has them."""
        if isinstance(self.values, np.ndarray):
            return self.values.ravel().tolist()
        return [*itertools.chain.from_iterable(self.values)]


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The output tensors, in the order of the request's."""

    id: str
    model: str
    version: str
    parameters: Mapping[str, str]
    outputs: Sequence[OutputTensor]


def classification(label: str, index: int, probability: float) -> str:
    """Format a label as Triton's classification extension does."""
    return f"{probability:.8f}:{index}:{label}"


def body(response: InferResponse) -> tuple[dict[str, Any], bytes]:
    """Give the JSON of a response and the binary tensors after it, empty if none is binary."""
    raws = [output.raw if output.is_binary else b"" for output in response.outputs]
    outputs = [*map(_described, response.outputs, raws)]
    named = {"model_name": response.model, "model_version": response.version}
    identity = {"id": response.id} if response.id else {}
    parameters = dict(response.parameters)
    return {**named, **identity, "parameters": parameters, "outputs": outputs}, b"".join(raws)


def _described(output: OutputTensor, raw: bytes) -> dict[str, Any]:
    values = (
        {"parameters": {"binary_data_size": len(raw)}}
        if output.is_binary
        else {"data": output.flat}
    )
    return {"name": output.name, "datatype": output.datatype, "shape": output.shape, **values}
