"""Temperature scaling."""

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ModelError
from service.models import calibration, manifest
from service.models.calibration import COLDEST, HOTTEST

RANDOM = np.random.default_rng(0)


def drawn(temperature: float, images: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of five classes, and targets drawn from their softmax at a temperature."""
    logits = RANDOM.normal(0, 3, (images, 5))
    likely = calibration.softmax(logits / temperature)
    return logits, (likely.cumsum(1) > RANDOM.random((images, 1))).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fits_the_true_temperature(temperature: float) -> None:
    logits, targets = drawn(temperature)
    assert calibration.temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_temperature_maximizes_the_likelihood(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, targets = random.normal(0, 2, (50, 4)), random.integers(0, 4, 50)

    def unlikeliness(temperature: float) -> float:
        likely = calibration.softmax(logits / temperature)
        wanted = np.full((50, 4), 1 / 52 / 4)
        wanted[np.arange(50), targets] += 1 - 1 / 52
        return -float((wanted * np.log(likely)).sum(1).mean())

    found = calibration.temperature(logits, targets)
    others = np.geomspace(COLDEST, HOTTEST, 100)
    assert unlikeliness(found) <= min(map(unlikeliness, others)) + 1e-9


def test_temperature_is_bounded() -> None:
    logits = np.eye(3) * 2
    assert calibration.temperature(logits / 1000, np.arange(3)) == pytest.approx(COLDEST)
    assert calibration.temperature(logits, np.array([1, 2, 0])) == pytest.approx(HOTTEST)


def test_all_right_on_few_images_is_smoothed() -> None:
    few, many = (np.tile(np.eye(3) * 5, (times, 1)) for times in (3, 300))
    doubtful, sure = (
        calibration.softmax(each / calibration.temperature(each, np.arange(len(each)) % 3)).max()
        for each in (few, many)
    )
    assert doubtful == pytest.approx(1 - 2 / 3 / 11, abs=1e-3)  # a third of the doubt is its own
    assert sure == pytest.approx(1 - 2 / 3 / 902, abs=1e-4)


def test_constant_in_a_row_of_logits_changes_nothing() -> None:
    logits, targets = drawn(2.0, 100)
    shifted = logits + RANDOM.normal(0, 50, (100, 1))
    one, other = (calibration.temperature(each, targets) for each in (logits, shifted))
    assert one == pytest.approx(other)


def test_error_compares_confidence_with_accuracy() -> None:
    likely = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    # Of two with 0.9 one is right: |0.9 - 0.5| for half of all; 0.6 right; 0.5 wrong.
    targets = np.array([0, 1, 1, 1])
    expected = (2 * 0.4 + 0.4 + 0.5) / 4
    assert calibration.error(likely, targets) == pytest.approx(expected)


def test_certain_and_right_has_no_error() -> None:
    assert calibration.error(np.eye(4), np.arange(4)) == 0


def test_calibration_has_its_gain_and_weights() -> None:
    logits, targets = drawn(3.0)
    found = calibration.calibrate(logits, targets, "ab" * 32)
    assert (found.images, found.sha256) == (20_000, "ab" * 32)
    assert found.temperature == pytest.approx(3, rel=0.05)
    before, after = found.error
    assert before > 0.1
    assert after < 0.02


def test_needs_a_hundred_images() -> None:
    logits, targets = drawn(3.0, 100)
    assert calibration.calibrate(logits, targets, "ab" * 32).images == 100
    for few in (1, 5, 99):
        with pytest.raises(ModelError, match=f"100 labelled images or more, and here are {few}:"):
            calibration.calibrate(logits[:few], targets[:few], "ab" * 32)


def test_cross_validation_fits_each_fold_to_the_others() -> None:
    logits, targets = drawn(2.0, 101)
    likely = calibration.held_out(logits, targets)
    parts = calibration.parts(101)
    assert sorted(np.bincount(parts)) == [20, 20, 20, 20, 21]
    for part in range(5):
        ours, others = parts == part, parts != part
        fitted = calibration.temperature(logits[others], targets[others])
        assert likely[ours] == pytest.approx(calibration.softmax(logits[ours] / fitted))


def test_folds_are_random_and_reproducible() -> None:
    parts = calibration.parts(1000)
    assert (parts == calibration.parts(1000)).all()
    assert sum(parts[::5] == parts[0]) < 60  # of 200; a pattern of every fifth would have them all


def test_refuses_a_temperature_that_does_not_help() -> None:
    """Half of these networks are calibrated, and half are overconfident."""
    random = np.random.default_rng(1)
    kept, refused = 0, 0
    for number in range(40):
        logits = random.normal(0, 3, (100, 5))
        likely = calibration.softmax(logits / (1 + number % 2))
        targets = (likely.cumsum(1) > random.random((100, 1))).argmax(1)
        plain, judged = calibration.softmax(logits), calibration.held_out(logits, targets)
        worse = [
            measure(judged, targets) > measure(plain, targets)
            for measure in (calibration.error, calibration.log_loss)
        ]
        if any(worse):
            with pytest.raises(
                ModelError, match="a temperature would not make probabilities better"
            ):
                calibration.calibrate(logits, targets, "ab" * 32)
            refused += 1
        else:
            found = calibration.calibrate(logits, targets, "ab" * 32)
            assert found.error[1] <= found.error[0]
            kept += 1
    assert kept + refused == 40
    assert refused >= 10
    assert kept >= 10


def test_log_loss_of_the_true_classes() -> None:
    likely = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    assert calibration.log_loss(likely[:2], np.array([0, 1])) == pytest.approx(
        -(np.log(0.5) + np.log(0.75)) / 2
    )
    assert np.isfinite(calibration.log_loss(likely, np.array([0, 1, 1])))


def test_calibration_in_a_manifest_keeps_the_rest() -> None:
    path = ROOT / "model_store/googlenet/model.toml"
    text = path.read_text("utf-8")
    found = calibration.calibrate(*drawn(2.0, 200), "cd" * 32)
    again = manifest.calibrated(manifest.calibrated(text, found), found)
    assert again.startswith(text.rstrip())  # with its comments
    assert again.count("[calibration]") == 1
