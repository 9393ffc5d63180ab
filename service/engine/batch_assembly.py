"""A batch's rows: views cut from the images' canvases, and probabilities back to a sum each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch, Slice

Rows = npt.NDArray[np.uint8 | np.float32]  # (rows, side, side, 3) RGB, in pixel units


def assemble(batch: Batch[PreparedImage]) -> Rows:
    """Cut a batch's views: (size, side, side, 3), zeros for padding.

    They are uint8, or float32 where one of them came as that: a tensor instead of an image.
    """
    side = batch.key.side
    rows = np.zeros((batch.size, side, side, 3), dtype(batch))
    at = 0
    for part in batch.slices:
        for view in part.payload.plan.views[part.start : part.stop]:
            canvas = part.payload.canvases[view.canvas]
            square = canvas[view.top : view.top + side, view.left : view.left + side]
            rows[at] = square[:, ::-1] if view.mirror else square
            at += 1
    return rows


def dtype(batch: Batch[PreparedImage]) -> type[np.uint8 | np.float32]:
    """Choose what holds all of a batch's views: float32 holds a uint8 exactly."""
    canvases = (canvas for part in batch.slices for canvas in part.payload.canvases)
    return np.float32 if any(one.dtype == np.float32 for one in canvases) else np.uint8


def sums(
    probabilities: npt.NDArray[np.float32], slices: Sequence[Slice[PreparedImage]]
) -> list[Probabilities]:
    """Sum up each slice's rows of a batch's probabilities, (rows, classes) float32."""
    ends = np.cumsum([part.rows for part in slices])
    return [
        probabilities[end - part.rows : end].sum(axis=0, dtype=np.float64)
        for end, part in zip(ends, slices, strict=True)
    ]
