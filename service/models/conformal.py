"""Label sets that hold the true class with a wanted probability: split conformal prediction.

A set has all labels whose probability is at least a threshold, which is a quantile of the true
classes' probabilities on calibration images (least ambiguous sets: Sadinle, Lei and Wasserman,
arXiv 1609.00451). If images to classify are exchangeable with those, the mean coverage is at least
the level, whatever the network (Angelopoulos and Bates, arXiv 2107.07511).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.errors import NotCalibrated
from service.models.ensemble import Ensemble
from service.models.manifest import LabelSets

LEVELS = (*(round(0.5 + step / 100, 2) for step in range(50)), 0.995, 0.999)
LARGEST = 20  # labels of a set that still says something

Floats = npt.NDArray[np.floating]
Abstention = Literal["empty", "too_large"]

_ROUNDED = 1e-9  # of a level times a count, that should be whole
_DOWN = Context(prec=6, rounding=ROUND_FLOOR)  # so that no set loses a label


@dataclass(frozen=True, slots=True)
class Promise:
    """A coverage level, and the least probability of the labels in its sets."""

    level: float
    threshold: float


def fit(probabilities: Mapping[str, Floats], targets: npt.NDArray[np.integer]) -> LabelSets:
    """Fit the thresholds of every level that the images support, for each view plan.

    Takes (images, classes) probabilities by plan, and (images,) true classes. A level needs
    level / (1 - level) images: 9 for 0.9, 99 for 0.99, 999 for 0.999.
    """
    levels = [level for level in LEVELS if rank(len(targets), level) <= len(targets)]
    thresholds = {}
    for plan, likely in probabilities.items():
        right = np.sort(np.take_along_axis(likely, targets[:, None], 1)[:, 0])[::-1]
        ranked = (float(right[rank(len(right), level) - 1]) for level in levels)
        thresholds[plan] = tuple(float(_DOWN.create_decimal_from_float(p)) for p in ranked)
    return LabelSets(levels=tuple(levels), thresholds=thresholds)


def rank(images: int, level: float) -> int:
    """Return which of the true classes' probabilities, the largest first, is the threshold.

    The rank is above the number of images if they are too few for the level.
    """
    return math.ceil((images + 1) * level - _ROUNDED)


def promise(ensemble: Ensemble, plan: str, coverage: float) -> Promise:
    """Return the lowest level of at least `coverage` that a model was calibrated for.

    Raises `NotCalibrated` if there is none, or none for the view plan.
    """
    sets = ensemble.label_sets
    if sets is None:
        several = "several models" if len(ensemble.members) > 1 else "not calibrated for them"
        raise NotCalibrated(
            f"{ensemble.name} has no label sets: it is {several}; `models calibrate` fits them"
        )
    if plan not in sets.thresholds:
        raise NotCalibrated(
            f"{ensemble.name} has no label sets for the views `{plan}`; ask for"
            f" {', '.join(sets.thresholds)}"
        )
    for level, threshold in zip(sets.levels, sets.thresholds[plan], strict=True):
        if level >= coverage:
            return Promise(level, threshold)
    raise NotCalibrated(
        f"{ensemble.name} was calibrated on too few images for a coverage of {coverage:g}; ask for"
        f" {sets.levels[-1]:g} or less"
    )


def size(probabilities: Floats, promise: Promise) -> int:
    """Count the labels of an image's set, which are its most probable ones."""
    return int(np.count_nonzero(probabilities >= promise.threshold))


def abstention(size: int, classes: int) -> Abstention | None:
    """Tell why a set of this size says nothing of an image; None if it does.

    It is empty if no label is as probable as those of the calibration images; it is too large with
    more than `LARGEST` labels, or with all of several classes.
    """
    if size == 0:
        return "empty"
    return "too_large" if size > max(1, min(LARGEST, classes - 1)) else None


def sentence(sets: LabelSets) -> str:
    """Describe fitted label sets in one sentence."""
    return (
        f"label sets for a coverage of {sets.levels[0]:g} to {sets.levels[-1]:g} by the views"
        f" {', '.join(sets.thresholds)}"
    )
