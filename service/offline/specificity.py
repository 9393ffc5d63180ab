"""Accuracy against information gain of the most specific labels that are probable enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.models.label_tree import LabelTree


@dataclass(frozen=True, slots=True)
class SpecificityScore:
    """How often the answers at a specificity are right, and how much they say."""

    specificity: float
    photos: int
    accuracy: float  # share of photos whose class the answer covers
    information: float  # mean information gain of the answers, 0 to 1
    classes: float  # share of answers that are classes, and no broader labels


def score(
    tree: LabelTree,
    probabilities: npt.NDArray[np.float64],
    targets: Sequence[int],
    specificity: float,
) -> SpecificityScore:
    """Score the answers to photos of known classes; `probabilities` are (photos, classes).

    An answer that covers n of N classes gains log N - log n, relative to log N, if it is right, and
    nothing if it is wrong, as in Deng et al., "Hedging Your Bets" (CVPR 2012).
    """
    nodes = [tree.most_specific(row, specificity)[0] for row in probabilities]
    right = [target in node.classes for node, target in zip(nodes, targets, strict=True)]
    most = math.log(probabilities.shape[1])
    gains = [
        (1 - math.log(len(node.classes)) / most) * is_right
        for node, is_right in zip(nodes, right, strict=True)
    ]
    is_class = [node.index is not None for node in nodes]
    means = (float(np.mean(values)) for values in (right, gains, is_class))
    return SpecificityScore(specificity, len(nodes), *means)
