"""Commands that do without a server what the service does."""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import uvloop

from service.cli import console, progress
from service.errors import ModelError
from service.imaging.image_folder import LeftOut
from service.models.manifest import Label
from service.offline import evaluation
from service.offline.evaluation import Photo, Ranked, Score
from service.serving import factory
from service.serving.classifier import Classifier
from service.settings import Precision, Settings

T = TypeVar("T")
Find = Callable[[Path, Sequence[Label]], list[Photo]]


def run(settings: Settings, work: Callable[[Classifier], Coroutine[Any, Any, T]]) -> T:
    """Do work with a classifier of one's own, without a server."""

    async def entered() -> T:
        async with factory.create_served_model(settings) as served_model:
            return await work(await served_model.ready())

    # The loop that serves, too: less work for what goes to the worker and back.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(entered())


def photos(folder: Path, labels: Sequence[Label]) -> list[Photo]:
    """Find a folder's labelled photos, and print what was left out."""
    left_out = LeftOut()
    found = evaluation.find(folder, labels, left_out.add)
    if left_out.sentence:
        console.say(left_out.sentence, stderr=True)
    return found


def rank_whole(
    settings: Settings, folder: Path, plan: str, title: str, find: Find = photos
) -> tuple[list[Photo], list[Ranked]]:
    """Rank all classes for each of a folder's labelled photos, under a bar of this title."""

    async def rank(classifier: Classifier) -> tuple[list[Photo], list[Ranked]]:
        labels = classifier.ensemble.labels
        found = find(folder, labels)
        with progress.counting() as bar:
            advance = functools.partial(bar.advance, bar.add_task(title, total=len(found)))
            return found, await evaluation.rank_all(
                classifier, found, plan, advance, top_k=len(labels)
            )

    return run(settings, rank)


def evaluate(settings: Settings, given: dict[str, Any]) -> int:
    """Print how often the model is right on labelled photos, for each plan of views."""
    folder: Path = given["folder"]
    if given["compare"]:
        return _compare(settings, folder, given["plans"][0])

    async def score(classifier: Classifier) -> list[Score]:
        found = photos(folder, classifier.ensemble.labels)
        with progress.counting() as bar:
            scores = []
            for plan in given["plans"]:
                advance = functools.partial(bar.advance, bar.add_task(plan, total=len(found)))
                scores.append(await evaluation.evaluate(classifier, found, plan, advance))
        return scores

    scores = run(settings, score)
    if given["json"]:
        console.say(json.dumps([dataclasses.asdict(score) for score in scores], indent=2))
    else:
        shown = console.table(f"{settings.model} on {folder}", "views", "photos", "top-1", "top-5")
        for one in scores:
            shown.add_row(one.views, *_rates(one))
        console.terminal().print(shown)
    for sentence in sorted({sentence for one in scores for sentence in one.unreadable}):
        console.say(sentence, stderr=True)
    return 0


def _compare(settings: Settings, folder: Path, plan: str) -> int:
    """Print how near each number format's answers are to float32's, which come first."""

    def ranked(precision: str, find: Find) -> tuple[list[Photo], list[Ranked]]:
        chosen = settings.model_copy(update={"precision": precision})
        return rank_whole(chosen, folder, plan, precision, find)

    found, exact = ranked("float32", photos)
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
        except ModelError as error:  # int8 is not for every model and device
            sentences.append(f"{precision}: {error}")
            continue
        near = evaluation.compare(found, exact, answers)
        rates = _rates(evaluation.score(plan, found, answers))
        shown.add_row(precision, *rates, str(near.same), f"{near.furthest:.4f}")
        sentences += [f"{precision}: {sentence}" for sentence in near.different]
    console.terminal().print(shown)
    for sentence in sentences:
        console.say(sentence)
    return 0


def _rates(score: Score) -> list[str]:
    read = score.photos - len(score.unreadable)
    return [str(read), *(f"{100 * hits / max(read, 1):.1f} %" for hits in (score.top1, score.top5))]
