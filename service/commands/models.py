"""Commands about the models in the store."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service import calibration, console, evaluation, quantization, store, weights
from service.bench.photos import read
from service.commands import offline, progress
from service.errors import ModelError
from service.settings import Settings
from service.store import Store


def list_models(settings: Settings, _: dict[str, Any]) -> int:
    """Print the models and whether their weights are there."""
    where = store.locate(settings.store)
    shown = console.table(
        f"Models in {where.root}", "name", "architecture", "weights", "description"
    )
    for name in where.names():
        described = where.manifest(name)
        there = "ready" if where.has(name) else "not fetched"
        shown.add_row(name, described.architecture, there, described.description)
    console.terminal().print(shown)
    return 0


def fetch_model(settings: Settings, given: dict[str, Any]) -> int:
    """Download a model's weights."""
    _download(store.locate(settings.store), given["name"])
    return 0


def import_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make a file the weights of a model."""
    where = store.locate(settings.store)
    file: Path = given["file"]
    digest = weights.install(where, given["name"], file, source=file.name, say=console.say)
    console.say(f"{given['name']} is in {where.root}, SHA-256 {digest}")
    return 0


def quantize_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make int8 a number format of a model, if it agrees with float32 on pictures."""
    where = store.locate(settings.store)
    model = weights.load(where, given["name"])
    pictures = read(given["calibrate"], partial(console.say, stderr=True))
    trial = quantization.attempt(model, pictures, max_pixels=settings.max_pixels)
    found = (
        f"int8 has the first label of float32 on {trial.same} of {trial.pictures} pictures, and "
        f"no probability is further from it than {trial.furthest:.3f}"
    )
    if not trial.passed:
        raise ModelError(f"{found}; that is not near enough, and nothing was recorded")
    where.quantize(model.name, model.sha256, trial.largest)
    console.say(f"{found}; {model.name} may be served with --precision int8")
    return 0


def calibrate_model(settings: Settings, given: dict[str, Any]) -> int:
    """Fit a model's temperature to labelled photos, and write it into its manifest."""
    name, folder = given["name"], given["folder"]
    settings = settings.model_copy(update={"model": name})
    where = store.locate(settings.store)
    model = weights.load(where, name)
    ranked = offline.rank_whole(settings, folder, "single", name)
    likely, targets = evaluation.probabilities(*ranked)
    found = calibration.calibrate(np.log(likely) * model.temperature, targets, model.sha256)
    with where.locked(name):
        where.calibrate(name, found)
    console.say(f"{name} has {calibration.sentence(found)}")
    return 0


def verify_models(settings: Settings, _: dict[str, Any]) -> int:
    """Check every model's weights against the recorded SHA-256."""
    where = store.locate(settings.store)
    status = 0
    for name in filter(where.has, where.names()):
        try:
            console.say(f"{name}: {where.verify(name)}")
        except ModelError as error:
            console.say(f"{name}: {error}", stderr=True)
            status = 1
    return status


def _download(where: Store, name: str) -> None:
    where.manifest(name)  # an unknown name needs no progress bar
    with progress.downloading() as bar:
        task = bar.add_task(name, total=None)

        def arrived(have: int, total: int | None) -> None:
            bar.update(task, completed=have, total=total)

        digest = weights.fetch(where, name, arrived)
    console.say(f"{name} is in {where.root}, SHA-256 {digest}", stderr=True)
