"""The command that shows what averaging over models and views gains."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from service.cli import console, evaluate, progress
from service.errors import ModelError
from service.imaging.crops import CROP
from service.models import store
from service.offline import ensemble_gain, evaluation
from service.offline.ensemble_gain import Averaged, Error, Row
from service.offline.evaluation import Photo
from service.serving.classifier import Classifier
from service.settings import Settings


def table(settings: Settings, given: dict[str, Any]) -> int:
    """Print the table of the paper's section 7: the first model, and all, by all of the views."""
    folder: Path = given["folder"]
    names = settings.model.split(",")
    photos = _photos(settings, names, folder)
    with progress.counting() as bar:
        alone = together = _averaged(settings, names[0], photos, given["plans"], bar)
        for name in names[1:]:
            other = _averaged(settings, name, photos, given["plans"], bar)
            together = [ensemble_gain.joined(*pair) for pair in zip(together, other, strict=True)]
    averaged = [*alone, *together] if len(names) > 1 else alone
    read = [at for at in range(len(photos)) if all(np.isfinite(a.likely[at, 0]) for a in averaged)]
    if not read:
        raise ModelError("none of the photos can be read")
    compared = [dataclasses.replace(one, likely=one.likely[read]) for one in averaged]
    rows = [*ensemble_gain.rows(compared, np.array([photos[at].index for at in read]))]
    if given["json"]:
        console.say(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        _show(f"{settings.model} on {len(read)} photos of {folder}", rows)
    for at in sorted({*range(len(photos))} - {*read}):
        console.say(f"{photos[at].path.name} cannot be read, and counts for nothing", stderr=True)
    return 0


def _photos(settings: Settings, names: Sequence[str], folder: Path) -> list[Photo]:
    """Find the photos, if the models have the same labels."""
    where = store.locate(settings.model_store)
    first, *others = (where.labels(name) for name in names)
    if any(labels != first for labels in others):
        raise ModelError(f"{settings.model} have different labels and cannot be averaged")
    return evaluate.photos(folder, first)


def _averaged(
    settings: Settings, name: str, photos: Sequence[Photo], plans: Sequence[str], bar: Progress
) -> list[Averaged]:
    """Have one model classify all photos, by each of the views."""

    async def answer(classifier: Classifier) -> list[Averaged]:
        found = []
        for views in plans:
            task = bar.add_task(f"{name}, {views}", total=len(photos))
            advance = functools.partial(bar.advance, task)
            likely = await evaluation.likely(classifier, photos, views, advance)
            (plan,) = classifier.ensemble.plans(views)
            crops = len(plan.views)
            found.append(Averaged(1, views, crops, crops * (plan.side / CROP) ** 2, likely))
        return found

    return evaluate.run(settings.model_copy(update={"model": name}), answer)


def _show(title: str, rows: Sequence[Row]) -> None:
    against = "against the first"
    errors = [heading for among in (1, 5) for heading in (f"top-{among}\nerror", against)]
    shown = console.table(title, "models", "crops", "cost", *errors)
    for at, row in enumerate(rows):
        cells = [cell for error in (row.top1, row.top5) for cell in _cells(error, is_first=not at)]
        shown.add_row(str(row.models), str(row.crops), f"{row.cost:.4g}", *cells)
    console.terminal().print(shown)
    console.say("differences in points of per cent, with their 95 % confidence intervals")


def _cells(one: Error, *, is_first: bool) -> tuple[str, str]:
    low, high = one.interval
    difference = "" if is_first else f"{one.difference:+.2f} ({low:.2f} to {high:.2f})"
    return f"{one.error:.2f} %", difference
