"""What averaging over models and views gains: the table of the GoogLeNet paper's section 7."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.offline import bootstrap

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]

_AMONG = 5  # labels, of the second error


@dataclass(frozen=True, slots=True)
class Averaged:
    """The probabilities that so many models give images by so many views."""

    models: int
    views: str
    crops: int  # of an image, by each model
    cost: float  # forwards of a crop of 224 pixels that an image takes
    likely: Floats  # (images, classes)


@dataclass(frozen=True, slots=True)
class Error:
    """How often the label was not among the first ones, in per cent."""

    error: float
    difference: float  # to the first row's; less is better
    interval: tuple[float, float]  # of the difference, at 95 %


@dataclass(frozen=True, slots=True)
class Row:
    """What came of so many models and views."""

    models: int
    views: str
    crops: int
    cost: float
    top1: Error
    top5: Error


def joined(some: Averaged, others: Averaged) -> Averaged:
    """Average models with others that have seen the same images by the same views.

    `crops` are those of the model that takes most: one whose classes are told by left and right
    takes no mirrored ones.
    """
    models = some.models + others.models
    total = some.likely * some.models + others.likely * others.models
    crops, cost = max(some.crops, others.crops), some.cost + others.cost
    return Averaged(models, some.views, crops, cost, total / models)


def rows(averaged: Sequence[Averaged], targets: Classes) -> Iterator[Row]:
    """Compare each with the first on the same images, whose classes are (images,)."""
    first = _place(averaged[0].likely, targets)
    for one in averaged:
        place = _place(one.likely, targets)
        top1, top5 = (_error(place >= among, first >= among) for among in (1, _AMONG))
        yield Row(one.models, one.views, one.crops, one.cost, top1, top5)


def _place(likely: Floats, targets: Classes) -> Classes:
    """Count the classes that are ranked before the right one, (images,)."""
    right = np.take_along_axis(likely, targets[:, None], 1)
    is_earlier = np.arange(likely.shape[1]) < targets[:, None]
    before: Classes = ((likely > right) | ((likely == right) & is_earlier)).sum(1)
    return before


def _error(wrong: npt.NDArray[np.bool_], first: npt.NDArray[np.bool_]) -> Error:
    differences = 100.0 * wrong - 100.0 * first
    return Error(
        100 * float(wrong.mean()), float(differences.mean()), bootstrap.interval(differences)
    )
