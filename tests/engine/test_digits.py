"""The bundled model, and the handwritten digits that no training has seen."""

import asyncio
import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from service.engine import engine
from service.errors import ModelError
from service.imaging.image_decoder import Bounds
from service.models import calibration, store
from service.offline import evaluation, view_probabilities
from service.offline.evaluation import Score
from service.serving import factory
from service.serving.classifier import Classifier
from service.settings import Settings
from service.training import run
from service.training.options import Options
from service.training.run import Callbacks

DIGITS = ROOT / "model_store/digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `train` and `test`, as `make digits` makes them."""
    root = tmp_path_factory.mktemp("digits")
    runpy.run_path(str(DIGITS / "images.py"))["main"](root)
    return root


def scores(
    folder: Path, plans: list[str], model: str = "digits", root: Path | None = None
) -> list[Score]:
    """What the committed weights, or a model's of a store, make of a folder of digits."""

    async def run() -> list[Score]:
        settings = Settings(
            model=model, model_store=root, device="cpu", precision="float32", cpu_threads=1
        )
        async with factory.create_served_model(settings) as served_model:
            classifier = await served_model.ready()
            return [await score(classifier, plan) for plan in plans]

    async def score(classifier: Classifier, plan: str) -> Score:
        photos = evaluation.find(folder, classifier.ensemble.labels)
        return await evaluation.evaluate(classifier, photos, plan, lambda _: None)

    return asyncio.run(run())


@pytest.mark.slow
def test_accuracy_on_held_out_digits_is_98_percent(digits: Path) -> None:
    for score in scores(digits / "test", ["single", "ten"]):
        assert (score.photos, score.unreadable) == (360, ())
        assert score.top1 >= 0.98 * score.photos, score.views


@pytest.mark.slow
def test_bundled_model_needs_no_temperature(digits: Path) -> None:
    settings = Settings(model="digits", device="cpu", precision="float32", cpu_threads=1)
    loaded = engine.load(settings)
    photos = evaluation.find(digits / "test", loaded.ensemble.labels)
    measured = view_probabilities.measure(loaded, photos, Bounds(10**6), lambda _: None)
    assert store.locate(None).manifest("digits").calibration is None
    with pytest.raises(ModelError, match="a temperature would not make probabilities better"):
        calibration.calibrate(np.log(measured.views[:, 0]), measured.targets, "0" * 64)


@pytest.mark.slow
def test_lenet5_learns_digits_in_a_few_epochs(digits: Path, tmp_path: Path) -> None:
    """The smallest example; `make lenet5` goes on for 30 epochs, to 98 of 100 and more."""
    chosen = Options.model_validate(
        {
            "folder": digits / "train",
            "name": "lenet5",
            "architecture": "lenet5",
            "epochs": 4,
            "batch": 16,
            "rate": 0.01,
            "average": 0.95,
            "mirror": False,
            "smallest": 0.6,
            "distortion": 0.2,
        }
    )
    settings = Settings(model_store=tmp_path, device="cpu", precision="float32")
    trained = run.train(settings, chosen, "the command", Callbacks())
    assert trained is not None
    assert store.locate(tmp_path).manifest("lenet5").architecture == "lenet5"
    (score,) = scores(digits / "test", ["single"], "lenet5", tmp_path)
    assert (score.photos, score.unreadable) == (360, ())
    assert score.top1 >= 0.95 * score.photos


def test_training_and_test_images_are_disjoint(digits: Path) -> None:
    train, test = (
        {path.read_bytes() for path in (digits / part).glob("*/*.png")}
        for part in ("train", "test")
    )
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test


def test_images_in_the_repository_are_held_out(digits: Path) -> None:
    test = {path.read_bytes(): path.parent.name for path in (digits / "test").glob("*/*.png")}
    ours = sorted((DIGITS / "held_out").iterdir())
    assert [path.name for path in ours] == [f"{digit}.png" for digit in range(10)]
    assert [test[path.read_bytes()] for path in ours] == [str(digit) for digit in range(10)]


def test_training_log_agrees_with_the_manifest() -> None:
    described = store.locate(None).manifest("digits")
    assert described.training is not None
    assert described.training.held_out == 289
    rows = list(csv.DictReader((DIGITS / "training/history.csv").read_text("utf-8").splitlines()))
    best = min(rows, key=lambda row: float(row["held_out_loss"]))
    assert int(best["epoch"]) == described.training.epochs
    assert float(best["held_out_top1"]) == pytest.approx(described.accuracy[0].top1, abs=0.01)
    assert described.accuracy[0].top1 >= 98
    assert float(best["waited"]) < 0.05 * float(best["seconds"])  # for images
    assert not described.preprocessing.mirror  # a mirrored 2 is no digit


def test_bundled_model_is_small() -> None:
    size = sum(path.stat().st_size for path in DIGITS.rglob("*") if path.is_file())
    assert size < 4_000_000


def test_manifest_command_is_that_of_make() -> None:
    described = store.locate(None).manifest("digits")
    assert described.training is not None
    wanted = described.training.command.replace("build/digits", "$(DIGITS)").replace("'", '"')
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    assert wanted in " ".join(makefile.split())
