"""The models commands that list, quantize and verify."""

from functools import partial
from typing import Any

from service import cpu_info
from service.bench.photos import read
from service.cli import console
from service.engine import openvino_engine, quantization
from service.errors import ModelError
from service.models import store
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
