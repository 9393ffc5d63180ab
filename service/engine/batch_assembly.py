"""Batch assembly: views are cut from canvases into rows, and results made of rows by slice."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import ByView, Probabilities
from service.scheduling.types import Batch, Slice

Rows = npt.NDArray[np.uint8 | np.float32]  # (rows, side, side, 3) RGB, in pixel units


def assemble(batch: Batch[PreparedImage]) -> Rows:
    """Cut a batch's views: (size, side, side, 3), zeros for padding.

    uint8, or float32 if a client sent one of the views as a tensor.
    """
    side = batch.key.side
    rows = np.zeros((batch.size, side, side, 3), dtype(batch))
    row = 0
    for part in batch.slices:
        for view in part.payload.plan.views[part.start : part.stop]:
            canvas = part.payload.canvases[view.canvas]
            square = canvas[view.top : view.top + side, view.left : view.left + side]
            rows[row] = square[:, ::-1] if view.mirror else square
            row += 1
    return rows


def dtype(batch: Batch[PreparedImage]) -> type[np.uint8 | np.float32]:
    """Choose the type of a batch's rows: float32 if any canvas is, as it holds uint8 exactly."""
    canvases = (canvas for part in batch.slices for canvas in part.payload.canvases)
    return np.float32 if any(canvas.dtype == np.float32 for canvas in canvases) else np.uint8


def has_features(batch: Batch[PreparedImage]) -> bool:
    """Whether the features of any of a batch's images are asked for."""
    return any(part.payload.features for part in batch.slices)


def results(
    outputs: Sequence[npt.NDArray[np.float32]], slices: Sequence[Slice[PreparedImage]]
) -> list[Probabilities | ByView]:
    """Make the result of each of a batch's slices; see `service.models.ensemble.Result`.

    The outputs are probabilities, (rows, classes) float32, and features, (rows, channels), which
    may be missing where none are asked for.
    """
    ends = np.cumsum([part.rows for part in slices])
    return [
        _result(outputs, part.payload, slice(end - part.rows, end))
        for end, part in zip(ends, slices, strict=True)
    ]


def _result(
    outputs: Sequence[npt.NDArray[np.float32]], image: PreparedImage, rows: slice
) -> Probabilities | ByView:
    if image.plan.stops:
        return outputs[0][rows].copy()  # the next batch overwrites them
    return _sum(outputs if image.features else outputs[:1], rows)


def _sum(outputs: Sequence[npt.NDArray[np.float32]], rows: slice) -> Probabilities:
    parts = [output[rows].sum(axis=0, dtype=np.float64) for output in outputs]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
