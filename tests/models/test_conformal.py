"""Label sets that hold the true class with a wanted probability."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import fake_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import NotCalibrated
from service.models import calibration, conformal
from service.models.conformal import LARGEST, LEVELS, Promise
from service.models.ensemble import Ensemble
from service.models.manifest import LabelSets

seeds = st.integers(0, 2**32 - 1)


def drawn(
    random: np.random.Generator, images: int, classes: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident probabilities, and true classes."""
    logits = random.normal(0, 1.5, (images, classes))
    likely = calibration.softmax(logits)
    targets = (likely.cumsum(1) > random.random((images, 1))).argmax(1)
    return calibration.softmax(2 * logits), targets


def with_sets(sets: LabelSets | None, members: int = 1) -> Ensemble:
    ensemble = fake_backend(members=members).ensemble
    calibrated = tuple(replace(member, label_sets=sets) for member in ensemble.members)
    return replace(ensemble, members=calibrated)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seeds, st.integers(10, 400))
def test_sets_hold_the_true_class_of_enough_calibration_images(seed: int, images: int) -> None:
    likely, targets = drawn(np.random.default_rng(seed), images)
    sets = conformal.fit({"single": likely}, targets)
    right = likely[np.arange(images), targets]
    for level, threshold in zip(sets.levels, sets.thresholds["single"], strict=True):
        held = int((right >= threshold).sum())
        # Of different probabilities, two of which may be equal once rounded down.
        assert 0 <= held - conformal.rank(images, level) <= 1
        assert held >= level * images


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(10, 400))
def test_the_set_of_a_higher_coverage_has_the_labels_of_a_lower_one(seed: int, images: int) -> None:
    likely, targets = drawn(np.random.default_rng(seed), images)
    sets = conformal.fit({"single": likely}, targets)
    promises = [Promise(*pair) for pair in zip(sets.levels, sets.thresholds["single"], strict=True)]
    for image in likely[:20]:
        sizes = [conformal.size(image, promise) for promise in promises]
        assert all(lower <= higher for lower, higher in pairwise(sizes))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_mean_coverage_of_exchangeable_images_is_the_level(level: float) -> None:
    """With n calibration images it is level to level + 1 / (n + 1), over all draws of them."""
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        likely, targets = drawn(random, 150)
        ensemble = with_sets(conformal.fit({"ten": likely}, targets))
        promise = conformal.promise(ensemble, "ten", level)
        likely, targets = drawn(random, 300)
        covered.append((likely[np.arange(300), targets] >= promise.threshold).mean())
    error = 4 * np.std(covered) / 20
    assert level - error <= np.mean(covered) <= level + 1 / 151 + error


@pytest.mark.parametrize(
    ("images", "highest"),
    [(1, 0.5), (9, 0.9), (8, 0.88), (99, 0.99), (98, 0.98), (199, 0.995), (999, 0.999)],
)
def test_a_level_needs_enough_images(images: int, highest: float) -> None:
    likely, targets = drawn(np.random.default_rng(0), images)
    assert conformal.fit({"single": likely}, targets).levels[-1] == highest


def test_levels_are_in_steps_of_a_hundredth() -> None:
    assert LEVELS[:2] == (0.5, 0.51)
    assert LEVELS[-3:] == (0.99, 0.995, 0.999)


SETS = LabelSets(levels=(0.8, 0.9), thresholds={"single": (0.5, 0.2), "ten": (0.4, 0.1)})


@pytest.mark.parametrize(
    ("plan", "coverage", "promise"),
    [
        ("single", 0.5, Promise(0.8, 0.5)),
        ("single", 0.8, Promise(0.8, 0.5)),
        ("single", 0.801, Promise(0.9, 0.2)),
        ("ten", 0.9, Promise(0.9, 0.1)),
    ],
)
def test_the_next_level_is_promised(plan: str, coverage: float, promise: Promise) -> None:
    assert conformal.promise(with_sets(SETS), plan, coverage) == promise


@pytest.mark.parametrize(
    ("ensemble", "plan", "coverage", "sentence"),
    [
        (with_sets(None), "single", 0.9, "fake0 has no label sets: it is not calibrated"),
        (with_sets(SETS, 2), "single", 0.9, "fake0,fake1 has no label sets: it is several models"),
        (with_sets(SETS), "dense", 0.9, "for the views `dense`; ask for single, ten"),
        (with_sets(SETS), "single", 0.91, "a coverage of 0.91; ask for 0.9 or less"),
    ],
)
def test_what_cannot_be_promised_is_an_error(
    ensemble: Ensemble, plan: str, coverage: float, sentence: str
) -> None:
    with pytest.raises(NotCalibrated, match=sentence):
        conformal.promise(ensemble, plan, coverage)


def test_a_set_has_the_labels_at_or_above_the_threshold() -> None:
    image = np.array([0.125, 0.5, 0.25, 0.125])
    sizes = [conformal.size(image, Promise(0.9, p)) for p in (0.6, 0.5, 0.25, 0.126, 0.125, 0)]
    assert sizes == [0, 1, 2, 2, 4, 4]


def test_thresholds_are_rounded_down() -> None:
    sets = conformal.fit({"single": np.array([[1 / 3, 2 / 3]])}, np.array([0]))
    assert sets.thresholds == {"single": (0.333333,)}


@pytest.mark.parametrize(
    ("size", "classes", "abstention"),
    [
        (0, 1000, "empty"),
        (1, 1000, None),
        (LARGEST, 1000, None),
        (LARGEST + 1, 1000, "too_large"),
        (9, 10, None),
        (10, 10, "too_large"),
        (2, 2, "too_large"),
        (1, 1, None),
    ],
)
def test_an_empty_or_too_large_set_is_an_abstention(
    size: int, classes: int, abstention: str | None
) -> None:
    assert conformal.abstention(size, classes) == abstention


@pytest.mark.parametrize(
    ("levels", "row", "sentence"),
    [
        ((0.8, 0.9), (0.5,), "each view plan needs a threshold for each level"),
        ((0.9, 0.8), (0.2, 0.5), "levels have to ascend"),
        ((), (), "at least 1 item"),
    ],
)
def test_a_table_is_complete(
    levels: tuple[float, ...], row: tuple[float, ...], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        LabelSets(levels=levels, thresholds={"single": row})
