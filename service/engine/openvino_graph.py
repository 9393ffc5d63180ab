"""A model's OpenVINO graph, with preprocessing and softmax added to serve it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from service.engine.openvino_api import core, openvino, opset13, preprocess
from service.models.converted_model import Converted, Description
from service.models.manifest import Preprocessing


def read(model: Converted) -> Any:
    """Read a model's graph; see `Converted` for its inputs and outputs."""
    return core().read_model(model.graph, model.constants)


def serialized(graph: Any, description: Description) -> Converted:
    """Serialize a graph; its floats stay float32."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(graph, path, compress_to_fp16=False)
        return Converted(description, path.read_bytes(), path.with_suffix(".bin").read_bytes())


def logits_only(graph: Any) -> Any:
    """Remove all results of a graph but the first."""
    for result in graph.get_results()[1:]:
        graph.remove_result(result)
    return graph


def probabilities(
    model: Converted, preprocessing: Preprocessing, temperature: float, kind: type[np.generic]
) -> Any:
    """Make the graph from RGB pixels of type `kind`, (N, side, side, 3), to (N, classes).

    If the network has a `last` layer, the graph also gives what that is applied to: (N, channels).
    """
    graph = _preprocessed(read(model), preprocessing, kind)
    logits = graph.output(0).get_node().input_value(0)
    scaled = opset13.divide(logits, np.float32(temperature))
    pooled = [_pooled(logits)] if model.description.network.last is not None else []
    outputs = [opset13.softmax(scaled, 1).output(0), *pooled]
    return openvino.Model(outputs, graph.get_parameters(), "probabilities")


def _pooled(logits: Any) -> Any:
    """Find the input of the last layer, a matrix product and a bias, before its quantization."""
    node = logits.get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    pooled = node.input_value(0)
    if pooled.get_node().get_type_name() == "FakeQuantize":
        return pooled.get_node().input_value(0)
    return pooled


def features(model: Converted, preprocessing: Preprocessing) -> Any:
    """Make the graph from RGB pixels, (N, side, side, 3) uint8, to logits and features."""
    return _preprocessed(read(model), preprocessing, np.uint8)


def _preprocessed(graph: Any, preprocessing: Preprocessing, kind: type[np.generic]) -> Any:
    """Add normalization, channel order and layout to a graph's input."""
    steps = preprocess.PrePostProcessor(graph)
    pixels = steps.input()
    pixels.tensor().set_element_type(openvino.Type(kind)).set_layout(openvino.Layout("NHWC"))
    pixels.tensor().set_color_format(preprocess.ColorFormat.RGB)
    pixels.model().set_layout(openvino.Layout("NCHW"))
    floats = pixels.preprocess().convert_element_type(openvino.Type.f32)
    if preprocessing.channels == "BGR":
        floats.convert_color(preprocess.ColorFormat.BGR)
    floats.mean([*preprocessing.mean]).scale([1 / scale for scale in preprocessing.scale])
    return steps.build()
