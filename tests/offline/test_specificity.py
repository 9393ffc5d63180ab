"""Accuracy against information gain of broader labels."""

import argparse
import math

import numpy as np
import pytest
from test_label_tree import TREE

from service.cli import argument_types
from service.offline import specificity
from service.offline.specificity import SpecificityScore


def test_a_right_answer_gains_by_how_specific_it_is_and_a_wrong_one_nothing() -> None:
    rows = np.array([[0.5, 0.5, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]])  # dog, beagle, chair
    gain = (1 - math.log(2) / math.log(5)) / 3 + 1 / 3
    scored = specificity.score(TREE, rows, [1, 0, 0], 0.9)
    assert scored == SpecificityScore(0.9, 3, pytest.approx(2 / 3), pytest.approx(gain), 2 / 3)


def test_specificities_are_probabilities() -> None:
    assert argument_types.probabilities("0.5,1") == [0.5, 1]
    for text in ("0", "1.1", "a", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            argument_types.probabilities(text)
