"""The evaluate --table command: the gain of averaging over models and views."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from service.cli import console, offline, progress
from service.errors import ModelError
from service.imaging.crops import CROP
from service.models import store
from service.offline import ensemble_gain, evaluation
from service.offline.ensemble_gain import Averaged, Error, Row
from service.offline.evaluation import Photo
from service.serving.classifier import Classifier
from service.settings import Settings


def table(settings: Settings, given: dict[str, Any]) -> int:
    """Print the table of section 7 of the paper: the first model and all, with each view plan."""
    folder: Path = given["folder"]
    names = settings.model.split(",")
    photos = _photos(settings, names, folder)
    with progress.counting() as bar:
        first = together = _averaged(settings, names[0], photos, given["plans"], bar)
        for name in names[1:]:
            other = _averaged(settings, name, photos, given["plans"], bar)
            together = [ensemble_gain.join(*pair) for pair in zip(together, other, strict=True)]
    averaged = [*first, *together] if len(names) > 1 else first
    read = [
        index
        for index in range(len(photos))
        if all(np.isfinite(result.probabilities[index, 0]) for result in averaged)
    ]
    if not read:
        raise ModelError("none of the photos can be read")
    compared = [
        dataclasses.replace(result, probabilities=result.probabilities[read]) for result in averaged
    ]
    rows = [*ensemble_gain.rows(compared, np.array([photos[index].index for index in read]))]
    if given["json"]:
        console.say(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        _show(f"{settings.model} on {len(read)} photos of {folder}", rows)
    for index in sorted({*range(len(photos))} - {*read}):
        console.say(f"{photos[index].path.name} cannot be read and is left out", stderr=True)
    return 0


def _photos(settings: Settings, names: Sequence[str], folder: Path) -> list[Photo]:
    """Find the photos; raises `ModelError` if the models have different labels."""
    model_store = store.locate(settings.model_store)
    first, *others = (model_store.labels(name) for name in names)
    if any(labels != first for labels in others):
        raise ModelError(f"{settings.model} have different labels and cannot be averaged")
    return offline.photos(folder, first)


def _averaged(
    settings: Settings, name: str, photos: Sequence[Photo], plans: Sequence[str], bar: Progress
) -> list[Averaged]:
    """Classify all photos with one model and each view plan."""

    async def answer(classifier: Classifier) -> list[Averaged]:
        results = []
        for views in plans:
            task = bar.add_task(f"{name}, {views}", total=len(photos))
            advance = functools.partial(bar.advance, task)
            likely = await evaluation.all_probabilities(classifier, photos, views, advance)
            (plan,) = classifier.ensemble.plans(views)
            crops = len(plan.views)
            results.append(Averaged(1, views, crops, crops * (plan.side / CROP) ** 2, likely))
        return results

    return offline.run(settings.model_copy(update={"model": name}), answer)


def _show(title: str, rows: Sequence[Row]) -> None:
    against = "against the first"
    errors = [heading for among in (1, 5) for heading in (f"top-{among}\nerror", against)]
    shown = console.table(title, "models", "crops", "cost", *errors)
    for index, row in enumerate(rows):
        cells = [
            cell for error in (row.top1, row.top5) for cell in _cells(error, is_first=not index)
        ]
        shown.add_row(str(row.models), str(row.crops), f"{row.cost:.4g}", *cells)
    console.terminal().print(shown)
    console.say("differences in points of per cent, with their 95 % confidence intervals")


def _cells(error: Error, *, is_first: bool) -> tuple[str, str]:
    low, high = error.interval
    difference = "" if is_first else f"{error.difference:+.2f} ({low:.2f} to {high:.2f})"
    return f"{error.error:.2f} %", difference
