"""A batch's rows: views cut on the device from its pictures' canvases, and back to a sum each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service import runtime
from service.cuts import Cuts
from service.ensemble import Probabilities
from service.work import Batch, Slice


def cut(batch: Batch[Cuts], device: torch.device) -> Tensor:
    """Cut a batch's views on its device: (size, side, side, 3), zeros for padding.

    They are uint8, or float32 where one of them came as that: a tensor instead of a picture.
    """
    return slices(batch) if device.type == "cpu" else gathered(batch, device)


def slices(batch: Batch[Cuts]) -> Tensor:
    """Copy one view after the other, which is quickest where a copy needs no start."""
    side = batch.key.side
    rows = torch.zeros((batch.size, side, side, 3), dtype=_dtype(batch))
    at = 0
    for part in batch.slices:
        canvases = [torch.from_numpy(canvas) for canvas in part.payload.canvases]
        for view in part.payload.plan.views[part.start : part.stop]:
            square = canvases[view.canvas][view.top : view.top + side, view.left : view.left + side]
            rows[at] = square.flip(1) if view.mirror else square
            at += 1
    return rows


def gathered(batch: Batch[Cuts], device: torch.device) -> Tensor:
    """Look all views up at once, in canvases that came as one copy.

    On a GPU a copy for each view takes longer to start than to run.
    """
    side, dtype = batch.key.side, _dtype(batch)
    canvases: list[Tensor] = []  # each (pixels, 3)
    places: list[tuple[int, int, bool]] = []  # of each view: its first pixel, its canvas' width
    pixels = 0
    for part in batch.slices:
        views = part.payload.plan.views[part.start : part.stop]
        starts = {}
        for number in sorted({view.canvas for view in views}):
            starts[number] = pixels
            canvas = part.payload.canvases[number]
            canvases.append(torch.from_numpy(canvas).view(-1, 3).to(dtype))
            pixels += len(canvases[-1])
        for view in views:
            width = part.payload.canvases[view.canvas].shape[1]
            first = starts[view.canvas] + view.top * width + view.left
            places.append((first, width, view.mirror))
    everything = runtime.to_device(canvases, device)  # (pixels, 3)
    first, width, mirrored = runtime.to_device([torch.tensor(places)], device).T[..., None, None]
    along = torch.arange(side, device=device)
    columns = torch.where(mirrored.bool(), side - 1 - along, along)  # (views, 1, side)
    rows = torch.zeros((batch.size, side, side, 3), dtype=dtype, device=device)
    rows[: len(places)] = everything[first + along[:, None] * width + columns]
    return rows


def _dtype(batch: Batch[Cuts]) -> torch.dtype:
    """Choose what holds all of a batch's views: float32 holds a uint8 exactly."""
    canvases = (canvas for part in batch.slices for canvas in part.payload.canvases)
    return torch.float32 if any(one.dtype == np.float32 for one in canvases) else torch.uint8


def sums(
    probabilities: npt.NDArray[np.float32], slices: Sequence[Slice[Cuts]]
) -> list[Probabilities]:
    """Sum up each slice's rows of a batch's probabilities, (rows, classes) float32."""
    ends = np.cumsum([part.rows for part in slices])
    return [
        probabilities[end - part.rows : end].sum(axis=0, dtype=np.float64)
        for end, part in zip(ends, slices, strict=True)
    ]
