"""How sure a network may be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import calibration, manifest
from service.calibration import COLDEST, HOTTEST

RANDOM = np.random.default_rng(0)


def drawn(temperature: float, pictures: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of five classes, and targets that are as likely as they say at a temperature."""
    logits = RANDOM.normal(0, 3, (pictures, 5))
    likely = calibration.softmax(logits / temperature)
    return logits, (likely.cumsum(1) > RANDOM.random((pictures, 1))).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_pictures_were_drawn_at_is_found(temperature: float) -> None:
    logits, targets = drawn(temperature)
    assert calibration.temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_other_temperature_is_likelier(seed: int) -> None:
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


def test_where_all_is_right_or_all_is_wrong_the_temperature_has_bounds() -> None:
    logits = np.eye(3) * 2
    assert calibration.temperature(logits / 1000, np.arange(3)) == pytest.approx(COLDEST)
    assert calibration.temperature(logits, np.array([1, 2, 0])) == pytest.approx(HOTTEST)


def test_all_right_on_few_pictures_is_not_taken_for_always_right() -> None:
    few, many = (np.tile(np.eye(3) * 5, (times, 1)) for times in (3, 300))
    doubtful, sure = (
        calibration.softmax(each / calibration.temperature(each, np.arange(len(each)) % 3)).max()
        for each in (few, many)
    )
    assert doubtful == pytest.approx(1 - 2 / 3 / 11, abs=1e-3)  # a third of the doubt is its own
    assert sure == pytest.approx(1 - 2 / 3 / 902, abs=1e-4)


def test_a_constant_of_a_row_changes_nothing() -> None:
    logits, targets = drawn(2.0, 100)
    shifted = logits + RANDOM.normal(0, 50, (100, 1))
    one, other = (calibration.temperature(each, targets) for each in (logits, shifted))
    assert one == pytest.approx(other)


def test_the_error_is_how_far_sureness_is_from_being_right() -> None:
    likely = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    # Of two with 0.9 one is right: |0.9 - 0.5| for half of all; 0.6 right; 0.5 wrong.
    targets = np.array([0, 1, 1, 1])
    expected = (2 * 0.4 + 0.4 + 0.5) / 4
    assert calibration.error(likely, targets) == pytest.approx(expected)


def test_what_is_certain_and_right_has_no_error() -> None:
    assert calibration.error(np.eye(4), np.arange(4)) == 0


def test_a_calibration_says_what_it_gained_and_for_which_weights() -> None:
    logits, targets = drawn(3.0)
    found = calibration.calibrate(logits, targets, "ab" * 32)
    assert (found.pictures, found.sha256) == (20_000, "ab" * 32)
    assert found.temperature == pytest.approx(3, rel=0.05)
    before, after = found.error
    assert before > 0.1
    assert after < 0.02


def test_it_is_put_into_a_manifest_which_else_stays_as_it_is() -> None:
    path = Path(__file__).parents[1] / "model_store/googlenet/model.toml"
    text = path.read_text("utf-8")
    found = calibration.calibrate(*drawn(2.0, 50), "cd" * 32)
    again = manifest.calibrated(manifest.calibrated(text, found), found)
    assert again.startswith(text.rstrip())  # with its comments
    assert again.count("[calibration]") == 1
