"""The models commands that list, quantize, calibrate and verify."""

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
    model_store = store.locate(settings.model_store)
    shown = console.table(
        f"Models in {model_store.root}", "name", "architecture", "weights", "description"
    )
    for name in model_store.names():
        manifest = model_store.manifest(name)
        status = "ready" if model_store.has(name) else "not fetched"
        shown.add_row(name, manifest.architecture, status, manifest.description)
    console.terminal().print(shown)
    return 0


def quantize_model(settings: Settings, given: dict[str, Any]) -> int:
    """Quantize a model to int8, if it agrees with float32 on the images."""
    model_store = store.locate(settings.model_store)
    model = openvino_engine.read(model_store, given["name"], "float32")
    files = read(given["calibrate"], partial(console.say, stderr=True))
    pixels = quantization.crop(model, files, max_pixels=settings.max_pixels)
    trial = quantization.attempt(model, pixels, cpu_info.available())
    result = (
        f"int8 has the first label of float32 on {trial.same} of {trial.images} images, and "
        f"probabilities differ by at most {trial.furthest:.3f}"
    )
    if not trial.passed:
        raise ModelError(f"{result}; not close enough, not saved")
    quantization.publish(model_store, model, pixels)
    console.say(f"{result}; {model.name} can be served with --precision int8")
    return 0


def calibrate_model(settings: Settings, given: dict[str, Any]) -> int:
    """Fit the temperature of a model to labelled photos, and write it to its manifest."""
    name, folder = given["name"], given["folder"]
    settings = settings.model_copy(update={"model": name})
    model_store = store.locate(settings.model_store)
    digest = model_store.verify(name)
    temperature = model_store.manifest(name).temperature(digest)
    ranked = evaluate.rank_whole(settings, folder, "single", name)
    likely, targets = evaluation.probabilities(*ranked)
    fit = calibration.calibrate(np.log(likely) * temperature, targets, digest)
    with model_store.locked(name):
        model_store.calibrate(name, fit)
    console.say(f"{name} has {calibration.sentence(fit)}")
    return 0


def verify_models(settings: Settings, _: dict[str, Any]) -> int:
    """Check every model's weights against the recorded SHA-256."""
    model_store = store.locate(settings.model_store)
    status = 0
    for name in filter(model_store.has, model_store.names()):
        try:
            console.say(f"{name}: {model_store.verify(name)}")
        except ModelError as error:
            console.say(f"{name}: {error}", stderr=True)
            status = 1
    return status
