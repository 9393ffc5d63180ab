"""Commands about a model's weights: fetched, imported, converted; PyTorch reads them."""

from pathlib import Path
from typing import Any

from service.cli import console, progress
from service.engine import converter, weights
from service.errors import NotConverted
from service.models import store
from service.models.store import Store
from service.settings import Settings


def fetch_model(settings: Settings, given: dict[str, Any]) -> int:
    """Download a model's weights."""
    _download(store.locate(settings.model_store), given["name"])
    return 0


def import_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make a file the weights of a model."""
    where = store.locate(settings.model_store)
    file: Path = given["file"]
    digest = weights.install(where, given["name"], file, source=file.name, say=console.say)
    console.say(f"{given['name']} is in {where.root}, SHA-256 {digest}")
    _convert(where, given["name"])
    return 0


def convert_model(settings: Settings, given: dict[str, Any]) -> int:
    """Convert a model's weights for OpenVINO, unless that has been done."""
    name = given["name"]
    made = converter.convert(store.locate(settings.model_store), name)
    console.say(f"{name} {'was converted' if made else 'is converted'} for OpenVINO")
    return 0


def _download(where: Store, name: str) -> None:
    where.manifest(name)  # an unknown name needs no progress bar
    with progress.downloading() as bar:
        task = bar.add_task(name, total=None)

        def arrived(have: int, total: int | None) -> None:
            bar.update(task, completed=have, total=total)

        digest = weights.fetch(where, name, arrived)
    console.say(f"{name} is in {where.root}, SHA-256 {digest}", stderr=True)
    _convert(where, name)


def _convert(where: Store, name: str) -> None:
    """Convert a model for OpenVINO, or say why PyTorch has to compute it."""
    try:
        converter.convert(where, name)
    except NotConverted as error:
        console.say(f"{error}; PyTorch will compute it", stderr=True)
