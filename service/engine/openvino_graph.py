"""OpenVINO's graph of a model, and what is put before and behind it to serve."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from service.engine.openvino_api import core, openvino, opset13, preprocess
from service.models.converted_model import Converted, Description
from service.models.manifest import Preprocessing


def read(model: Converted) -> Any:
    """Read a model's graph; see `Converted` for what it takes and gives."""
    return core().read_model(model.graph, model.constants)


def serialized(graph: Any, description: Description) -> Converted:
    """Put a graph into bytes, in float32 where it is in floats."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(graph, path, compress_to_fp16=False)
        return Converted(description, path.read_bytes(), path.with_suffix(".bin").read_bytes())


def logits_only(graph: Any) -> Any:
    """Drop a graph's results but the first."""
    for result in graph.get_results()[1:]:
        graph.remove_result(result)
    return graph


def probabilities(
    model: Converted, scaled: Preprocessing, temperature: float, kind: type[np.generic]
) -> Any:
    """Make the graph from RGB pixels, (N, side, side, 3) of a kind, to (N, classes) float32."""
    graph = _preprocessed(read(model), scaled, kind)
    logits = graph.output(0).get_node().input_value(0)
    softened = opset13.divide(logits, np.float32(temperature))
    return openvino.Model([opset13.softmax(softened, 1)], graph.get_parameters(), "probabilities")


def features(model: Converted, scaled: Preprocessing) -> Any:
    """Make the graph from RGB pixels, (N, side, side, 3) uint8, to the logits and features."""
    return _preprocessed(read(model), scaled, np.uint8)


def _preprocessed(graph: Any, scaled: Preprocessing, kind: type[np.generic]) -> Any:
    """Put the last steps of preprocessing before a graph."""
    steps = preprocess.PrePostProcessor(graph)
    pixels = steps.input()
    pixels.tensor().set_element_type(openvino.Type(kind)).set_layout(openvino.Layout("NHWC"))
    pixels.tensor().set_color_format(preprocess.ColorFormat.RGB)
    pixels.model().set_layout(openvino.Layout("NCHW"))
    floats = pixels.preprocess().convert_element_type(openvino.Type.f32)
    if scaled.channels == "BGR":
        floats.convert_color(preprocess.ColorFormat.BGR)
    floats.mean([*scaled.mean]).scale([1 / scale for scale in scaled.scale])
    return steps.build()
