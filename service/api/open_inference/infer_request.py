"""A request to infer, from HTTP or gRPC: validated to images, views, timeout and output format."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, get_args

from service.api.open_inference import tensors
from service.api.open_inference.tensors import (
    FEATURES,
    INPUT_NAMES,
    OUTPUT,
    TENSOR,
    InputTensor,
)
from service.errors import InvalidParameter
from service.imaging.image_decoder import ImageInput
from service.settings import AUTO, FixedPlanName, PlanName, Views

_MICROSECONDS = 1e-6
_PARAMETERS = ("views", "timeout", "binary_data_output")  # of a request
_MAX_NAMES = 32  # of parameters that are looked at


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the request names."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as received."""

    id: str
    parameters: Mapping[str, Any]
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput]


@dataclass(frozen=True, slots=True)
class ValidOutput:
    """A validated output; `labels` is the number of most probable ones, 0 for numbers."""

    name: str
    labels: int
    is_binary: bool


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A validated request.

    `seconds` and `views` are None where the request leaves them to the server.
    """

    id: str
    images: tuple[ImageInput, ...]
    views: Views | None
    seconds: float | None
    outputs: tuple[ValidOutput, ...]

    @property
    def labels(self) -> int:
        """The number of most probable labels that are asked for."""
        return max(output.labels for output in self.outputs)

    @property
    def features(self) -> bool:
        """Whether features are asked for."""
        return any(output.name == FEATURES for output in self.outputs)


def validate(request: InferRequest, max_images: int) -> ValidRequest:
    """Validate a request; raises `InvalidParameter`, `MalformedRequest` or `TooLarge`."""
    if len(request.inputs) != 1:
        count = len(request.inputs)
        raise InvalidParameter(f"the request has {count} inputs; send one of {INPUT_NAMES}")
    _check_names(request.parameters)
    (tensor,) = request.inputs
    valid = ValidRequest(
        request.id,
        tensors.images(tensor, max_images),
        _views(request.parameters.get("views"), tensor),
        _seconds(request.parameters.get("timeout")),
        _outputs(request),
    )
    return replace(valid, views=_fixed(valid.views)) if valid.features else valid


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Tell whether a value is an integer, no boolean, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_names(parameters: Mapping[str, Any]) -> None:
    """Refuse a likely misspelling; other unknown names are for other servers, and ignored."""
    for name in itertools.islice(parameters, _MAX_NAMES):
        near = difflib.get_close_matches(name.lower()[:64], _PARAMETERS, n=1, cutoff=0.8)
        if near and name not in _PARAMETERS:
            raise InvalidParameter(f"there is no parameter {name!r}; did you mean {near[0]}?")


def _views(views: object, tensor: InputTensor) -> Views | None:
    known: tuple[Views, ...] = (*get_args(PlanName), AUTO)
    plan = next((name for name in known if name == views), None)
    if plan != views:
        raise InvalidParameter(f"the parameter views must be one of {', '.join(known)}")
    if tensor.name != TENSOR.name:
        return plan
    if plan not in {None, "single"}:
        raise InvalidParameter("a tensor is one view of an image; ask for the views `single`")
    return "single"


def _fixed(views: Views | None) -> FixedPlanName:
    """Give the views that features are averaged over: by default those of `/embed`."""
    known: tuple[FixedPlanName, ...] = get_args(FixedPlanName)
    plan = next((name for name in known if name == (views or "single")), None)
    if plan is None:
        raise InvalidParameter(f"features are of fixed views; ask for {', '.join(known)}")
    return plan


def _seconds(timeout: object) -> float | None:
    if timeout is None:
        return None
    if not is_whole(timeout, 0):
        raise InvalidParameter("the parameter timeout must be a whole number of microseconds")
    return timeout * _MICROSECONDS or None  # Triton's clients send 0 for none


def _outputs(request: InferRequest) -> tuple[ValidOutput, ...]:
    is_binary = _flag(request.parameters, "binary_data_output", default=False)
    requested = request.outputs or (RequestedOutput(OUTPUT, {}),)
    names = [output.name for output in requested]
    if not {*names} <= {OUTPUT, FEATURES} or len({*names}) < len(names):
        raise InvalidParameter(f"the outputs are {OUTPUT} and {FEATURES}; ask for each once")
    return tuple(_output(output, is_binary=is_binary) for output in requested)


def _output(output: RequestedOutput, *, is_binary: bool) -> ValidOutput:
    labels = output.parameters.get("classification", 0)
    if labels != 0 and (output.name == FEATURES or not is_whole(labels, 1)):
        raise InvalidParameter(
            f"the parameter classification must be the number of labels, of {OUTPUT}"
        )
    return ValidOutput(
        output.name, labels, _flag(output.parameters, "binary_data", default=is_binary)
    )


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"the parameter {name} must be true or false")
    return value
