"""From PyTorch to OpenVINO: a model is converted when it is imported, fetched or trained."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from service.engine import openvino_graph, weights
from service.engine.networks import ending
from service.engine.networks.googlenet import LocalResponseNorm
from service.engine.openvino_api import core, openvino, opset1, opset13
from service.engine.weights import Model
from service.errors import NotConverted
from service.models import converted_model
from service.models.converted_model import Converted, Description, Network
from service.models.store import Store

# How far a probability may be from PyTorch's, both in float32. GoogLeNet's is within 1e-5; in
# networks of 150 layers rounding errors grow to some 1e-4, and a wrong graph is off by far more.
_NEAR = 1e-3
_BATCHES = (1, 3)  # rows, that both compute to be compared
_NORM = "service::local_response_norm"


def convert(store: Store, name: str) -> bool:
    """Convert a model for OpenVINO, unless that has been done; tells whether it had to be done.

    Compares what comes of it with PyTorch's results first. Raises `NotConverted` for a network
    that cannot be converted, and what `weights.load` raises.
    """
    with store.locked(name):
        try:
            converted_model.read(store, name, store.verify(name))
        except NotConverted:
            publish(store, weights.load(store, name))
            return True
    return False


def publish(store: Store, model: Model) -> None:
    """Convert a model and store the result; the caller has locked it."""
    converted_model.publish(store, model.name, make(model))


def make(model: Model) -> Converted:
    """Convert a model for all sizes of views that it takes; or for the smallest, if it has to be.

    A network may compute the larger ones in a way that one graph does not hold for all. Raises
    `NotConverted`.
    """
    try:
        return _made(model, model.sides)
    except NotConverted:
        if len(model.sides) == 1:
            raise
        return _made(model, model.sides[:1])


def _made(model: Model, sides: tuple[int, ...]) -> Converted:
    """Make a graph that is dynamic in its rows and, for several sizes, its sides."""
    # Where gradients are possible, attention is traced in one way, and then checked in another.
    network, last, window = model.network().requires_grad_(requires_grad=False), None, None
    if model.explains:
        network, found = ending.with_features(network)
        last, window = weights.architecture(model.manifest).last, found.window
    side = sides[0] if len(sides) == 1 else -1
    try:
        with _own_logging(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of what `_check` then looks at
            graph = openvino.convert_model(
                network,
                example_input=torch.zeros(2, 3, sides[0], sides[0]),
                input=[-1, 3, side, side],
                extension=_normalisation(),
            )
    except Exception as error:  # whatever the library raises for one network or another
        raise NotConverted(_sentence(model, _last_line(error))) from error
    _simplify_pools(graph)
    _check(model, graph, sides)
    description = Description(
        weights=model.sha256,
        converter=converted_model.converter(),
        network=Network(sides=sides, last=last, window=window),
    )
    return openvino_graph.serialized(graph, description)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Leave logging as it was: if it fails, the library leaves it at errors only."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _normalisation() -> list[Any]:
    """Convert our response normalisation to OpenVINO's own operation, which is quicker."""
    from openvino.frontend.pytorch import (  # noqa: PLC0415 - after `openvino_api`
        ConversionExtension,
        ModuleExtension,
    )

    def operation(context: Any) -> Any:
        channels = np.array([1], np.int64)
        norm = LocalResponseNorm
        node = opset13.lrn(context.get_input(0), channels, norm.alpha, norm.beta, 1.0, norm.size)
        return node.outputs()

    return [
        ModuleExtension(
            LocalResponseNorm,
            _NORM,
            evaluate=lambda _, x: x,  # of what is traced only the shape counts
            convert=lambda _, replaced, x: replaced(x),
        ),
        ConversionExtension(_NORM, operation),
    ]


def _simplify_pools(graph: Any) -> None:
    """Give max pools one result: the places of the maxima, which nothing uses, cost a copy."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MaxPool" or any(node.get_attributes()["pads_begin"]):
            continue
        given = node.get_attributes()
        # Without padding, rounding up is the same in both versions of the operation.
        rounding = "floor" if given["rounding_type"] == "floor" else "ceil"
        pool = opset1.max_pool(
            node.input_value(0),
            given["strides"],
            given["pads_begin"],
            given["pads_end"],
            given["kernel"],
            rounding,
        )
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(pool.output(0))


def _check(model: Model, graph: Any, sides: Sequence[int]) -> None:
    """Raise `NotConverted` unless the graph computes what the network does."""
    exact = model.network()
    floats = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(graph, "CPU", floats)
    for x in _probes(model, sides):
        with torch.inference_mode():
            wanted = exact(x).softmax(1)
        try:
            got = torch.from_numpy(compiled(x.numpy())[0]).softmax(1)
        except RuntimeError as error:
            raise NotConverted(_sentence(model, _last_line(error))) from error
        apart = float((got - wanted).abs().max())
        if not apart <= _NEAR:
            raise NotConverted(_sentence(model, f"{apart:.2g} from PyTorch's probabilities"))


def _probes(model: Model, sides: Sequence[int]) -> list[torch.Tensor]:
    """Make smooth random images as the network takes them: (N, 3, side, side) float32."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(model.manifest.preprocessing.scale)[:, None, None]
    probes = []
    for side in sides:
        for rows in _BATCHES:
            coarse = torch.rand((rows, 3, 7, 7), generator=generator) * 255 - 128
            smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear")
            probes.append(smooth * scale)
    return probes


def _sentence(model: Model, why: str) -> str:
    return f"{model.manifest.architecture} cannot be converted for OpenVINO: {why}"


def _last_line(error: Exception) -> str:
    """Give what an error of OpenVINO says, without its sources' places and its advice."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and "please" not in line.lower()]
    if "Exception:" in said[:-1]:  # what tracing raised; after it come graphs
        return said[said.index("Exception:") + 1]
    return said[-1] if said else type(error).__name__
