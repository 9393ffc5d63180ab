"""Commands about the models in the store."""

from functools import partial
from typing import Any

import numpy as np

from service import cpu_info
from service.bench.photos import read
from service.cli import console, evaluate
from service.engine import openvino_engine, quantization
from service.errors import ModelError
from service.models import calibration, store
from service.offline import evaluation
from service.settings import Settings


def list_models(settings: Settings, _: dict[str, Any]) -> int:
    """Print the models and whether their weights are there."""
    where = store.locate(settings.model_store)
    shown = console.table(
        f"Models in {where.root}", "name", "architecture", "weights", "description"
    )
    for name in where.names():
        described = where.manifest(name)
        there = "ready" if where.has(name) else "not fetched"
        shown.add_row(name, described.architecture, there, described.description)
    console.terminal().print(shown)
    return 0


def quantize_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make int8 a number format of a model, if it agrees with float32 on images."""
    where = store.locate(settings.model_store)
    model = openvino_engine.read(where, given["name"], "float32")
    files = read(given["calibrate"], partial(console.say, stderr=True))
    pixels = quantization.crop(model, files, max_pixels=settings.max_pixels)
    trial = quantization.attempt(model, pixels, cpu_info.available())
    found = (
        f"int8 has the first label of float32 on {trial.same} of {trial.images} images, and "
        f"no probability is further from it than {trial.furthest:.3f}"
    )
    if not trial.passed:
        raise ModelError(f"{found}; that is not near enough, and nothing was kept")
    quantization.publish(where, model, pixels)
    console.say(f"{found}; {model.name} may be served with --precision int8")
    return 0


def calibrate_model(settings: Settings, given: dict[str, Any]) -> int:
    """Fit a model's temperature to labelled photos, and write it into its manifest."""
    name, folder = given["name"], given["folder"]
    settings = settings.model_copy(update={"model": name})
    where = store.locate(settings.model_store)
    digest = where.verify(name)
    temperature = where.manifest(name).temperature(digest)
    ranked = evaluate.rank_whole(settings, folder, "single", name)
    likely, targets = evaluation.probabilities(*ranked)
    found = calibration.calibrate(np.log(likely) * temperature, targets, digest)
    with where.locked(name):
        where.calibrate(name, found)
    console.say(f"{name} has {calibration.sentence(found)}")
    return 0


def verify_models(settings: Settings, _: dict[str, Any]) -> int:
    """Check every model's weights against the recorded SHA-256."""
    where = store.locate(settings.model_store)
    status = 0
    for name in filter(where.has, where.names()):
        try:
            console.say(f"{name}: {where.verify(name)}")
        except ModelError as error:
            console.say(f"{name}: {error}", stderr=True)
            status = 1
    return status
