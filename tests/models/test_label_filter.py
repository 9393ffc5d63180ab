"""The label filter: which labels a ranking has, and their probabilities."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import fake_backend
from test_label_tree import LABELS

from service.errors import UnknownLabel
from service.models.label_filter import LabelFilter

ENSEMBLE = replace(fake_backend().ensemble, labels=LABELS)
PROBABILITIES = np.array([0.5, 0.125, 0.25, 0.0625, 0.0625])


def ranked(
    names: Sequence[str] = (),
    top_k: int = 5,
    *,
    threshold: float = 0.0,
    renormalise: bool = False,
) -> list[tuple[str, float]]:
    kept = LabelFilter.of(ENSEMBLE, names, threshold=threshold, renormalise=renormalise)
    return [(one.label, one.probability) for one in kept.rank(ENSEMBLE, PROBABILITIES, top_k)]


def test_named_classes_are_ranked_with_the_probabilities_of_all() -> None:
    assert ranked(["chair", "pug"]) == [("pug", 0.125), ("chair", 0.0625)]


def test_a_broader_label_keeps_its_classes_once() -> None:
    assert ranked(["dog", "beagle", "n_chair"]) == [
        ("beagle", 0.5), ("pug", 0.125), ("chair", 0.0625),
    ]  # fmt: skip


def test_top_k_is_of_the_named_classes() -> None:
    assert ranked(["chair", "dog"], top_k=1) == [("beagle", 0.5)]


def test_labels_below_the_threshold_are_left_out() -> None:
    assert ranked(threshold=0.25) == [("beagle", 0.5), ("tabby", 0.25)]
    assert ranked(threshold=0.51) == []
    assert ranked(["chair"], threshold=0.1) == []


def test_renormalised_probabilities_are_shares_of_the_named_classes() -> None:
    assert ranked(["dog"], renormalise=True) == [("beagle", 0.8), ("pug", 0.2)]
    assert ranked(["dog"], threshold=0.5, renormalise=True) == [("beagle", 0.8)]
    assert ranked(renormalise=True)[0] == ("beagle", 0.5)


def test_classes_of_no_probability_stay_so() -> None:
    kept = LabelFilter.of(ENSEMBLE, ["dog"], threshold=0, renormalise=True)
    ranking = kept.rank(ENSEMBLE, np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 5)
    assert [one.probability for one in ranking] == [0, 0]


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(UnknownLabel, match="'pag'; did you mean pug"):
        ranked(["dog", "pag"])
