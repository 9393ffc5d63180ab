"""What averaging over models and views gains: the table of the GoogLeNet paper's section 7."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]

CONFIDENCE = 0.95  # of an interval
SAMPLES = 10_000  # of the bootstrap
SEED = 0  # the same images have the same interval

_TOP = 5  # labels, of the second error


@dataclass(frozen=True, slots=True)
class Averaged:
    """Probabilities averaged over models and views."""

    models: int
    views: str
    crops: int  # per image and model
    cost: float  # forward passes of a crop of 224 pixels that an image takes
    probabilities: Floats  # (images, classes)


@dataclass(frozen=True, slots=True)
class Error:
    """How often the label was not among the first ones, in per cent."""

    error: float
    difference: float  # from the first row; negative is better
    interval: tuple[float, float]  # of the difference, at 95 %


@dataclass(frozen=True, slots=True)
class Row:
    """The errors of an average over models and views."""

    models: int
    views: str
    crops: int
    cost: float
    top1: Error
    top5: Error


def join(first: Averaged, second: Averaged) -> Averaged:
    """Average models with others that have classified the same images by the same views.

    `crops` is the larger of the two: a model whose classes differ by left and right takes no
    mirrored crops.
    """
    models = first.models + second.models
    total = first.probabilities * first.models + second.probabilities * second.models
    crops, cost = max(first.crops, second.crops), first.cost + second.cost
    return Averaged(models, first.views, crops, cost, total / models)


def rows(averaged: Sequence[Averaged], targets: Classes) -> Iterator[Row]:
    """Compare each with the first on the same images, whose classes are (images,)."""
    baseline = _rank(averaged[0].probabilities, targets)
    for average in averaged:
        rank = _rank(average.probabilities, targets)
        top1, top5 = (_error(rank >= top, baseline >= top) for top in (1, _TOP))
        yield Row(average.models, average.views, average.crops, average.cost, top1, top5)


def _rank(probabilities: Floats, targets: Classes) -> Classes:
    """Count the classes that are ranked before the right one: (images,)."""
    right = np.take_along_axis(probabilities, targets[:, None], 1)
    is_earlier = np.arange(probabilities.shape[1]) < targets[:, None]
    before: Classes = ((probabilities > right) | ((probabilities == right) & is_earlier)).sum(1)
    return before


def _error(wrong: npt.NDArray[np.bool_], baseline: npt.NDArray[np.bool_]) -> Error:
    differences = 100.0 * wrong - 100.0 * baseline
    return Error(100 * float(wrong.mean()), float(differences.mean()), interval(differences))


def interval(values: Floats) -> tuple[float, float]:
    """Return the bootstrap confidence interval of the mean of (images,) values.

    Percentile method (Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"). Where
    values are differences between two ways to classify the same images, it is a paired
    comparison. How often each distinct value is drawn is multinomial, so the cost does not depend
    on the number of images.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(values), counts / len(values), SAMPLES)
    means = drawn @ distinct / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
