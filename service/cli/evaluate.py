"""The evaluate command, and classification without a server."""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import uvloop

from service.cli import console, progress
from service.errors import ModelError, NoBroaderLabels
from service.imaging.image_folder import LeftOut
from service.models.manifest import Label
from service.offline import evaluation, specificity
from service.offline.evaluation import Photo, Ranked, Score
from service.offline.specificity import SpecificityScore
from service.serving import factory
from service.serving.classifier import Classifier
from service.settings import Precision, Settings

T = TypeVar("T")
Find = Callable[[Path, Sequence[Label]], list[Photo]]


def run(settings: Settings, work: Callable[[Classifier], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine with a classifier in this process."""

    async def entered() -> T:
        async with factory.create_served_model(settings) as served_model:
            return await work(await served_model.ready())

    # As in the server: less overhead for messages to and from the worker.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(entered())


def photos(folder: Path, labels: Sequence[Label]) -> list[Photo]:
    """Find the labelled photos of a folder, and print what was left out."""
    left_out = LeftOut()
    labelled = evaluation.find(folder, labels, left_out.add)
    if left_out.sentence:
        console.say(left_out.sentence, stderr=True)
    return labelled


def rank_whole(
    settings: Settings, folder: Path, plan: str, title: str, find: Find = photos
) -> tuple[list[Photo], list[Ranked]]:
    """Rank all classes for each labelled photo of a folder, with a progress bar."""

    async def rank(classifier: Classifier) -> tuple[list[Photo], list[Ranked]]:
        labels = classifier.ensemble.labels
        labelled = find(folder, labels)
        with progress.counting() as bar:
            advance = functools.partial(bar.advance, bar.add_task(title, total=len(labelled)))
            return labelled, await evaluation.rank_all(
                classifier, labelled, plan, advance, top_k=len(labels)
            )

    return run(settings, rank)


def evaluate(settings: Settings, given: dict[str, Any]) -> int:
    """Print the accuracy of the model on labelled photos, for each view plan."""
    folder: Path = given["folder"]
    if given["compare"]:
        return _compare(settings, folder, given["plans"][0])
    if given["specificity"]:
        return _specificity(settings, folder, given)

    async def score(classifier: Classifier) -> list[Score]:
        labelled = photos(folder, classifier.ensemble.labels)
        with progress.counting() as bar:
            scores = []
            for plan in given["plans"]:
                advance = functools.partial(bar.advance, bar.add_task(plan, total=len(labelled)))
                scores.append(await evaluation.evaluate(classifier, labelled, plan, advance))
        return scores

    scores = run(settings, score)
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
        labelled = photos(folder, ensemble.labels)
        with progress.counting() as bar:
            advance = functools.partial(bar.advance, bar.add_task(plan, total=len(labelled)))
            rows = await evaluation.all_probabilities(classifier, labelled, plan, advance)
        read = np.flatnonzero(~np.isnan(rows[:, 0]))
        if not read.size:
            raise ModelError("none of the photos can be read")
        targets = [labelled[row].index for row in read]
        return [
            specificity.score(ensemble.tree, rows[read], targets, asked)
            for asked in given["specificity"]
        ]

    scores = run(settings, score)
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

    def ranked(precision: str, find: Find) -> tuple[list[Photo], list[Ranked]]:
        chosen = settings.model_copy(update={"precision": precision})
        return rank_whole(chosen, folder, plan, precision, find)

    labelled, exact = ranked("float32", photos)
    shown = console.table(
        f"{settings.model}, {plan}, on {folder}",
        *("precision", "photos", "top-1", "top-5", "same first label", "furthest probability"),
    )
    sentences = []
    for precision in get_args(Precision):
        if precision == "auto":
            continue
        try:
            answers = exact if precision == "float32" else ranked(precision, evaluation.find)[1]
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


def _rates(score: Score) -> list[str]:
    read = score.photos - len(score.unreadable)
    return [str(read), *(f"{100 * hits / max(read, 1):.1f} %" for hits in (score.top1, score.top5))]
