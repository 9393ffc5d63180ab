"""Batch assembly: views are cut from canvases into rows, and rows summed up by slice."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
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


def sums(
    probabilities: npt.NDArray[np.float32], slices: Sequence[Slice[PreparedImage]]
) -> list[Probabilities]:
    """Sum a batch's probabilities, (rows, classes) float32, by slice."""
    ends = np.cumsum([part.rows for part in slices])
    return [
        probabilities[end - part.rows : end].sum(axis=0, dtype=np.float64)
        for end, part in zip(ends, slices, strict=True)
    ]
