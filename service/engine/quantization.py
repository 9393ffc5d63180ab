"""Quantization to int8 by NNCF, calibrated on images and compared with float32.

Needed to agree: activation ranges from minimum to maximum, quantized symmetrically, and response
normalisation in floating point, which NNCF leaves OpenVINO's own operation in.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from service.engine import openvino_graph
from service.engine.openvino_executor import Compiled, Model
from service.errors import ModelError, WrongOption
from service.imaging import crops, image_decoder
from service.models import converted_model
from service.models.converted_model import Converted
from service.models.manifest import Preprocessing
from service.models.store import INT8, Store

ENOUGH = 0.97  # minimum share of images with the same first label as in float32

_LEAST = 2  # images: half for calibration, half for comparison
_ROWS = 16

Pixels = npt.NDArray[np.uint8]  # (images, 224, 224, 3)


@dataclass(frozen=True, slots=True)
class Trial:
    """The agreement of int8 with float32, on images not used for calibration.

    Each half of the images is classified by a model calibrated on the other.
    """

    images: int
    same: int  # images with the same first label as in float32
    furthest: float  # the largest difference of a probability

    @property
    def passed(self) -> bool:
        """Whether it agrees well enough to be served."""
        return self.same >= ENOUGH * self.images


def crop(model: Model, files: Sequence[bytes], *, max_pixels: int) -> Pixels:
    """Cut the view `single` from each image.

    Raises the decoder's errors, such as `UnreadableImage`, and `ModelError` for fewer than two
    images.
    """
    if len(files) < _LEAST:
        raise ModelError("calibration takes two images or more, of what the model will see")
    plan = crops.plan("single", model.manifest.preprocessing.resized)
    pixels = []
    for file in files:
        upright = image_decoder.decode(file, max_pixels=max_pixels, min_side=plan.min_side)
        (canvas,) = crops.canvases(upright, plan)
        pixels.append(canvas)
    return np.stack(pixels)


def attempt(model: Model, pixels: Pixels, threads: int) -> Trial:
    """Compare int8 with float32 by two-fold cross-validation."""
    exact = _probabilities(Compiled(model, "float32", threads), pixels)
    actual = np.empty_like(exact)
    for half in (0, 1):
        served = replace(model, served=quantize(model, pixels[1 - half :: 2]))
        actual[half::2] = _probabilities(Compiled(served, "int8", threads), pixels[half::2])
    same = int((exact.argmax(1) == actual.argmax(1)).sum())
    return Trial(len(pixels), same, float(np.abs(exact - actual).max()))


def publish(store: Store, model: Model, pixels: Pixels) -> None:
    """Quantize a model, calibrated on all images, and store it beside its weights."""
    quantized = quantize(model, pixels)
    with store.locked(model.name):
        converted_model.publish(store, model.name, quantized, INT8)


def quantize(model: Model, pixels: Pixels) -> Converted:
    """Quantize a model's graph; its input and output stay float32."""
    try:
        import nncf  # noqa: PLC0415 - an optional dependency
        from nncf.quantization import advanced_parameters, range_estimator  # noqa: PLC0415
    except ImportError as error:
        raise WrongOption(
            "quantizing needs NNCF: pip install 'googlenet-service[quantize]'"
        ) from error
    ranges = range_estimator.RangeEstimatorParametersSet.MINMAX
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # its progress bar
        quantized = nncf.quantize(
            openvino_graph.logits_only(openvino_graph.read(model.floats)),
            nncf.Dataset(
                [image[None] for image in _normalized(pixels, model.manifest.preprocessing)]
            ),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(pixels),
            advanced_parameters=advanced_parameters.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges
            ),
        )
    return openvino_graph.serialized(quantized, model.floats.description)


def _normalized(pixels: Pixels, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Normalize pixels as the network takes them: (images, 3, 224, 224)."""
    channels = pixels[..., ::-1] if preprocessing.channels == "BGR" else pixels
    mean, scale = (
        np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.scale)
    )
    return np.ascontiguousarray(((channels - mean) * scale).transpose(0, 3, 1, 2))


def _probabilities(compiled: Compiled, pixels: Pixels) -> npt.NDArray[np.float32]:
    return np.concatenate([compiled.probabilities(rows) for rows in _batches(pixels)])


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(pixels), _ROWS):
        yield pixels[start : start + _ROWS]
