"""The models commands that fetch, import and convert weights, with PyTorch."""

from pathlib import Path
from typing import Any

from service.cli import console, progress
from service.engine import converter, weights
from service.errors import NotConverted
from service.models import store
from service.models.store import Store
from service.settings import Settings


def fetch_model(settings: Settings, given: dict[str, Any]) -> int:
    """Download the weights of a model."""
    _download(store.locate(settings.model_store), given["name"])
    return 0


def import_model(settings: Settings, given: dict[str, Any]) -> int:
    """Install a file as the weights of a model."""
    model_store = store.locate(settings.model_store)
    file: Path = given["file"]
    digest = weights.install(model_store, given["name"], file, source=file.name, say=console.say)
    console.say(f"{given['name']} is in {model_store.root}, SHA-256 {digest}")
    _convert(model_store, given["name"])
    return 0


def convert_model(settings: Settings, given: dict[str, Any]) -> int:
    """Convert the weights of a model for OpenVINO, unless they are converted."""
    name = given["name"]
    is_new = converter.convert(store.locate(settings.model_store), name)
    console.say(f"{name} {'converted' if is_new else 'already converted'} for OpenVINO")
    return 0


def _download(model_store: Store, name: str) -> None:
    model_store.manifest(name)  # raises for an unknown name before the bar appears
    with progress.downloading() as bar:
        task = bar.add_task(name, total=None)

        def arrived(have: int, total: int | None) -> None:
            bar.update(task, completed=have, total=total)

        digest = weights.fetch(model_store, name, arrived)
    console.say(f"{name} is in {model_store.root}, SHA-256 {digest}", stderr=True)
    _convert(model_store, name)


def _convert(model_store: Store, name: str) -> None:
    """Convert a model for OpenVINO, or print why PyTorch has to run it."""
    try:
        converter.convert(model_store, name)
    except NotConverted as error:
        console.say(f"{error}; PyTorch will run it", stderr=True)
