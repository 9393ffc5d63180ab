"""The command that calibrates a model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from service.__main__ import main
from service.cli import calibrate
from service.models import store
from service.offline.view_probabilities import ViewProbabilities

Captured = pytest.CaptureFixture[str]
DIGEST = "ab" * 32


def measured(sure: float, right: int, images: int = 200) -> ViewProbabilities:
    """Two classes, the first `sure` by every view, and as many of the images right."""
    targets = [int(n * right // images == (n + 1) * right // images) for n in range(images)]
    views = np.tile(np.float32([sure, 1 - sure]), (images, 10, 1))
    return ViewProbabilities(views, np.array(targets), (1, 2, 6, 10))


def test_a_temperature_is_not_fitted_a_second_time() -> None:
    first, sentences = calibrate.fit(measured(0.99, right=160), 1, DIGEST, 0.995)
    assert (first.images, first.sha256) == (200, DIGEST)
    assert first.temperature == pytest.approx(3.3, abs=0.1)
    assert sentences[0].startswith("temperature 3.")
    assert set(first.reference or {}) == {"single", "ten", "adaptive"}
    tempered = 1 / (1 + 99 ** (-1 / first.temperature))
    again, _ = calibrate.fit(measured(tempered, 160), first.temperature, DIGEST, 0.995)
    assert again.temperature == pytest.approx(first.temperature, rel=0.01)


def test_without_a_better_temperature_it_is_1_and_the_rest_is_fitted() -> None:
    fitted, sentences = calibrate.fit(measured(0.8, right=160), 1, DIGEST, 0.995)
    assert fitted.temperature == 1
    assert fitted.error[0] == fitted.error[1]
    assert sentences[0].startswith("a temperature would not make probabilities better: ")
    assert fitted.stopping is not None


def test_the_lead_is_fitted_to_probabilities_of_the_fitted_temperature() -> None:
    """The first view leads by 0.98, and at temperature 3.3 by just below 0.6: all disagree."""
    rare = measured(0.99, right=1600, images=2000)
    rare.views[::100, 1:] = 0.01, 0.99
    fitted, _ = calibrate.fit(rare, 1, DIGEST, 0.995)
    assert fitted.stopping is not None
    assert fitted.stopping.lead == 0.6
    assert fitted.stopping.differences == 0


@pytest.mark.parametrize("percent", ["100", "49", "x", "99.5%"])
def test_an_agreement_that_no_images_can_show_is_refused(percent: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["models", "calibrate", "digits", "photos", "--agreement", percent])
    assert f"'{percent}' is not per cent from 50 to below 100" in capsys.readouterr().err


def calibrated(folder: Path, copies: int, *options: str) -> int:
    """Run the command on ten digits, each so often; return its exit status."""
    for number in range(10):
        (folder / "photos" / str(number)).mkdir(parents=True)
        image = ROOT / f"model_store/digits/held_out/{number}.png"
        for copy in range(copies):
            shutil.copy(image, folder / "photos" / str(number) / f"{copy}.png")
    where = ["--model-store", str(folder / "store"), "--device=cpu", "--precision=float32"]
    return main(["models", "calibrate", "digits", str(folder / "photos"), *where, *options])


@pytest.mark.slow
def test_the_views_of_paper_are_fitted_where_they_are_asked_for(
    tmp_path: Path, capsys: Captured
) -> None:
    assert calibrated(tmp_path, 10, "--paper", "--agreement=95") == 0
    assert "views=adaptive:paper stops at a lead of " in capsys.readouterr().out
    fitted = store.locate(tmp_path / "store").manifest("digits").calibration
    assert fitted is not None
    assert fitted.paired is not None
    assert fitted.paired.views < 72
    assert fitted.paired.differences <= 5


def test_few_photos_change_nothing(tmp_path: Path, capsys: Captured) -> None:
    assert calibrated(tmp_path, 1) == 1
    assert "100 labelled images or more, and here are 10: " in capsys.readouterr().err
    assert store.locate(tmp_path / "store").manifest("digits").calibration is None
