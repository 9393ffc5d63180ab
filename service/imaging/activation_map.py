"""Why a label: what each place of an image adds to a class's logit.

A network that ends in average pooling and one linear layer gives it exactly (class activation
maps, Zhou et al. 2016, arXiv 1512.04150): the last layer's weights of the class, put to the
features of every place instead of their mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.imaging.crops import Box

Grid = npt.NDArray[np.float32]

CELLS = 64  # along each side of a heat map


@dataclass(frozen=True, slots=True)
class Activation:
    """A view's map: (rows, columns) float32, as the image is, whatever the view mirrored.

    The map's mean and the bias are together the view's logit.
    """

    grid: Grid
    logit: float
    bias: float
    box: Box  # that the view shows of the image


def heat(activations: Sequence[Activation]) -> Grid:
    """Average the maps of views where they are on the image: (CELLS, CELLS) float32.

    Between the places of a map it is bilinear; what no view shows is 0.
    """
    total = np.zeros((CELLS, CELLS))
    shown = np.zeros((CELLS, CELLS))
    for one in activations:
        rows, columns = one.grid.shape
        down = _weights(rows, one.box.top, one.box.height)
        across = _weights(columns, one.box.left, one.box.width)
        total += down @ one.grid @ across.T
        shown += np.outer(down.any(1), across.any(1))
    return (total / np.maximum(shown, 1)).astype(np.float32)


def hottest(heat: Grid) -> Box | None:
    """Give the smallest box around what is above half of the maximum, if that is above 0."""
    most = heat.max()
    if most <= 0:
        return None
    rows, columns = np.nonzero(heat > most / 2)
    top, left = rows.min(), columns.min()
    cells = (left, top, columns.max() + 1 - left, rows.max() + 1 - top)
    return Box(*(float(cell) / CELLS for cell in cells))


def _weights(places: int, start: float, length: float) -> npt.NDArray[np.float64]:
    """Give what each place of a map is to each cell along a side: (CELLS, places).

    The map begins at `start` and is `length` long, in shares of the side.
    """
    along = ((np.arange(CELLS) + 0.5) / CELLS - start) / length  # from 0 to 1 on the map
    at = (along * places - 0.5).clip(0, places - 1)
    near: npt.NDArray[np.float64] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(places)))
    near[(along < 0) | (along > 1)] = 0  # what it does not show
    return near
