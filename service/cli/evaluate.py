"""The evaluate command."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from service.cli import console, offline, progress
from service.errors import ModelError, NoBroaderLabels
from service.models import store
from service.offline import evaluation, specificity
from service.offline.evaluation import Photo, Ranked, Score
from service.offline.specificity import SpecificityScore
from service.serving.classifier import Classifier
from service.settings import Precision, Settings


def evaluate(settings: Settings, given: dict[str, Any]) -> int:
    """Print the accuracy of the model on labelled photos, for each view plan."""
    folder: Path = given["folder"]
    if given["compare"]:
        return _compare(settings, folder, given["plans"][0])
    if given["specificity"]:
        return _specificity(settings, folder, given)

    async def score(classifier: Classifier) -> list[Score]:
        labelled = offline.photos(folder, classifier.ensemble.labels)
        with progress.counting() as bar:
            scores = []
            for plan in given["plans"]:
                advance = functools.partial(bar.advance, bar.add_task(plan, total=len(labelled)))
                scores.append(await evaluation.evaluate(classifier, labelled, plan, advance))
        return scores

    scores = offline.run(settings, score)
    if given["json"]:
        console.say(json.dumps([dataclasses.asdict(score) for score in scores], indent=2))
    else:
        shown = console.table(f"{settings.model} on {folder}", "views", "photos", "top-1", "top-5")
        for result in scores:
            shown.add_row(result.views, *_rates(result))
        console.terminal().print(shown)
    for sentence in sorted({sentence for result in scores for sentence in result.unreadable}):
        console.say(sentence, stderr=True)
    return 0


def _specificity(settings: Settings, folder: Path, given: dict[str, Any]) -> int:
    """Print accuracy and information gain at each specificity."""
    plan = given["plans"][0]

    async def score(classifier: Classifier) -> list[SpecificityScore]:
        ensemble = classifier.ensemble
        if ensemble.tree.is_flat:
            raise NoBroaderLabels(f"{ensemble.name} has no broader labels")
        labelled = offline.photos(folder, ensemble.labels)
        with progress.counted(plan, len(labelled)) as advance:
            rows = await evaluation.all_probabilities(classifier, labelled, plan, advance)
        read = np.flatnonzero(~np.isnan(rows[:, 0]))
        if not read.size:
            raise ModelError("none of the photos can be read")
        targets = [labelled[row].index for row in read]
        return [
            specificity.score(ensemble.tree, rows[read], targets, asked)
            for asked in given["specificity"]
        ]

    scores = offline.run(settings, score)
    if given["json"]:
        console.say(json.dumps([dataclasses.asdict(score) for score in scores], indent=2))
        return 0
    shown = console.table(
        f"{settings.model}, {plan}, {scores[0].photos} photos of {folder}",
        *("specificity", "accuracy", "information gain", "answers that are classes"),
    )
    for result in scores:
        shares = (result.accuracy, result.information, result.classes)
        shown.add_row(f"{result.specificity}", *(f"{100 * share:.1f} %" for share in shares))
    console.terminal().print(shown)
    return 0


def _compare(settings: Settings, folder: Path, plan: str) -> int:
    """Print how close the results of each number format are to those of float32."""
    labels = store.locate(settings.model_store).labels(settings.model.split(",")[0])
    labelled = offline.photos(folder, labels)
    exact = _ranked(settings, labelled, plan, "float32")
    shown = console.table(
        f"{settings.model}, {plan}, on {folder}",
        *("precision", "photos", "top-1", "top-5", "same first label", "furthest probability"),
    )
    sentences = []
    for precision in get_args(Precision):
        if precision == "auto":
            continue
        try:
            is_exact = precision == "float32"
            answers = exact if is_exact else _ranked(settings, labelled, plan, precision)
        except ModelError as error:  # int8 is not available for every model and device
            sentences.append(f"{precision}: {error}")
            continue
        near = evaluation.compare(labelled, exact, answers)
        rates = _rates(evaluation.score(plan, labelled, answers))
        shown.add_row(precision, *rates, str(near.same), f"{near.furthest:.4f}")
        sentences += [f"{precision}: {sentence}" for sentence in near.different]
    console.terminal().print(shown)
    for sentence in sentences:
        console.say(sentence)
    return 0


def _ranked(
    settings: Settings, labelled: Sequence[Photo], plan: str, precision: Precision
) -> list[Ranked]:
    """Rank all classes for each photo in a number format, with a progress bar."""

    async def rank(classifier: Classifier) -> list[Ranked]:
        with progress.counted(precision, len(labelled)) as advance:
            return await evaluation.rank_all(
                classifier, labelled, plan, advance, top_k=len(classifier.ensemble.labels)
            )

    return offline.run(settings.model_copy(update={"precision": precision}), rank)


def _rates(score: Score) -> list[str]:
    read = score.photos - len(score.unreadable)
    return [str(read), *(f"{100 * hits / max(read, 1):.1f} %" for hits in (score.top1, score.top5))]
