"""Conversion from PyTorch to OpenVINO, when a model is imported, fetched or trained."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from service.engine import openvino_graph, weights
from service.engine.networks import classifier_head
from service.engine.networks.googlenet import LocalResponseNorm
from service.engine.openvino_api import core, error_line, openvino, opset1, opset13
from service.engine.weights import Model
from service.errors import NotConverted
from service.models import converted_model
from service.models.converted_model import Converted, Description, Network
from service.models.store import Store

# Largest difference of a probability from PyTorch's, both in float32. GoogLeNet's is within 1e-5;
# networks of 150 layers reach some 1e-4; a wrong graph differs by far more.
_TOLERANCE = 1e-3
_BATCHES = (1, 3)  # rows of the batches that are compared
_NORM = "service::local_response_norm"


def convert(store: Store, name: str) -> bool:
    """Convert a model for OpenVINO unless it is converted; return whether it was necessary.

    The graph is stored only if its results agree with PyTorch's. Raises `NotConverted` for a
    network that cannot be converted, and what `weights.load` raises.
    """
    with store.locked(name):
        try:
            converted_model.read(store, name, store.verify(name))
        except NotConverted:
            publish(store, weights.load(store, name))
            return True
    return False


def publish(store: Store, model: Model) -> None:
    """Convert a model and store the result; requires the store's lock on it."""
    converted_model.publish(store, model.name, make(model))


def make(model: Model) -> Converted:
    """Convert a model for all view sizes that it supports, else for the smallest only.

    Some networks compute other sizes in ways that one graph cannot express. Raises
    `NotConverted`.
    """
    try:
        return _converted(model, model.sides)
    except NotConverted:
        if len(model.sides) == 1:
            raise
        return _converted(model, model.sides[:1])


def _converted(model: Model, sides: tuple[int, ...]) -> Converted:
    """Make a graph that is dynamic in its rows and, for several view sizes, its sides."""
    # With gradients, attention would be traced on another code path than it is checked on.
    network, last, window = model.network().requires_grad_(requires_grad=False), None, None
    if model.explains:
        network, features = classifier_head.with_features(network)
        last, window = weights.architecture(model.manifest).last, features.window
    side = sides[0] if len(sides) == 1 else -1
    try:
        with _logging_restored(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `_check` finds what tracing warns of
            graph = openvino.convert_model(
                network,
                example_input=torch.zeros(2, 3, sides[0], sides[0]),
                input=[-1, 3, side, side],
                extension=_norm_extensions(),
            )
    except Exception as error:  # networks make the library raise all kinds
        raise NotConverted(_sentence(model, error_line(error))) from error
    _simplify_pools(graph)
    _check(model, graph, sides)
    description = Description(
        weights=model.sha256,
        converter=converted_model.converter(),
        network=Network(sides=sides, last=last, window=window),
    )
    return openvino_graph.serialized(graph, description)


@contextmanager
def _logging_restored() -> Iterator[None]:
    """Restore logging: a failed conversion leaves it at errors only."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _norm_extensions() -> list[Any]:
    """Map our response normalisation to OpenVINO's own operation, which is faster."""
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
            evaluate=lambda _, x: x,  # only its shape is traced
            convert=lambda _, replaced, x: replaced(x),
        ),
        ConversionExtension(_NORM, operation),
    ]


def _simplify_pools(graph: Any) -> None:
    """Remove the unused second output of max pools, the indices: it costs a copy."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MaxPool" or any(node.get_attributes()["pads_begin"]):
            continue
        attributes = node.get_attributes()
        # Without padding, rounding up is the same in both versions of the operation.
        rounding = "floor" if attributes["rounding_type"] == "floor" else "ceil"
        pool = opset1.max_pool(
            node.input_value(0),
            attributes["strides"],
            attributes["pads_begin"],
            attributes["pads_end"],
            attributes["kernel"],
            rounding,
        )
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(pool.output(0))


def _check(model: Model, graph: Any, sides: Sequence[int]) -> None:
    """Raise `NotConverted` unless the graph computes what the network does."""
    reference = model.network()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(graph, "CPU", config)
    for x in _probes(model, sides):
        with torch.inference_mode():
            expected = reference(x).softmax(1)
        try:
            actual = torch.from_numpy(compiled(x.numpy())[0]).softmax(1)
        except RuntimeError as error:
            raise NotConverted(_sentence(model, error_line(error))) from error
        difference = float((actual - expected).abs().max())
        if not difference <= _TOLERANCE:
            raise NotConverted(_sentence(model, f"{difference:.2g} from PyTorch's probabilities"))


def _probes(model: Model, sides: Sequence[int]) -> list[torch.Tensor]:
    """Make smooth random inputs for the network: (N, 3, side, side) float32."""
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
