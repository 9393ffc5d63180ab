"""Class activation maps: what each place of an image adds to a class's logit.

For a network that ends in average pooling and one linear layer the map is exact (Zhou et al. 2016,
arXiv 1512.04150): the last layer's weights of the class, applied to the features of every place
instead of their mean.
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
    """A view's map: (rows, columns) float32, unmirrored.

    The view's logit is the map's mean plus the bias.
    """

    grid: Grid
    logit: float
    bias: float
    box: Box  # the part of the image that the view shows


def heat(activations: Sequence[Activation]) -> Grid:
    """Average the maps of views at their places in the image: (CELLS, CELLS) float32.

    Maps are interpolated bilinearly; a cell that no view shows is 0.
    """
    total = np.zeros((CELLS, CELLS))
    count = np.zeros((CELLS, CELLS))  # views that show the cell
    for activation in activations:
        rows, columns = activation.grid.shape
        down = _weights(rows, activation.box.top, activation.box.height)
        across = _weights(columns, activation.box.left, activation.box.width)
        total += down @ activation.grid @ across.T
        count += np.outer(down.any(1), across.any(1))
    return (total / np.maximum(count, 1)).astype(np.float32)


def hottest(heat: Grid) -> Box | None:
    """Return the smallest box around all cells above half of the maximum, if that is above 0."""
    maximum = heat.max()
    if maximum <= 0:
        return None
    rows, columns = np.nonzero(heat > maximum / 2)
    top, left = rows.min(), columns.min()
    cells = (left, top, columns.max() + 1 - left, rows.max() + 1 - top)
    return Box(*(float(cell) / CELLS for cell in cells))


def _weights(places: int, start: float, length: float) -> npt.NDArray[np.float64]:
    """Return the weight of each of a map's places for each cell along a side: (CELLS, places).

    `start` and `length` are the map's extent, as fractions of the side.
    """
    along = ((np.arange(CELLS) + 0.5) / CELLS - start) / length  # from 0 to 1 on the map
    position = (along * places - 0.5).clip(0, places - 1)
    weights: npt.NDArray[np.float64]
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(places)))
    weights[(along < 0) | (along > 1)] = 0  # outside of the map
    return weights
