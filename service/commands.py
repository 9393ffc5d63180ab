"""What each command does, once its arguments are understood."""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from service import app, console, evaluation, quantization, runtime, store, weights
from service.bench import measure
from service.bench.photos import read
from service.bench.report import tables
from service.classifier import Classifier
from service.errors import ModelError, ServiceError
from service.evaluation import Photo, Ranked, Score
from service.settings import Settings
from service.store import Store

T = TypeVar("T")


def list_models(settings: Settings, _: dict[str, Any]) -> int:
    """Print the models and whether their weights are there."""
    where = store.locate(settings.store)
    shown = console.table(
        f"Models in {where.root}", "name", "architecture", "weights", "description"
    )
    for name in where.names():
        described = where.manifest(name)
        there = "ready" if where.has(name) else "not fetched"
        shown.add_row(name, described.architecture, there, described.description)
    console.terminal().print(shown)
    return 0


def fetch_model(settings: Settings, given: dict[str, Any]) -> int:
    """Download a model's weights."""
    _download(store.locate(settings.store), given["name"])
    return 0


def import_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make a file the weights of a model."""
    where = store.locate(settings.store)
    file: Path = given["file"]
    digest = weights.install(where, given["name"], file, source=file.name)
    console.say(f"{given['name']} is in {where.root}, SHA-256 {digest}")
    return 0


def quantize_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make int8 a number format of a model, if it agrees with float32 on pictures."""
    where = store.locate(settings.store)
    model = weights.load(where, given["name"])
    trial = quantization.attempt(model, read(given["calibrate"]), max_pixels=settings.max_pixels)
    found = (
        f"int8 has the first label of float32 on {trial.same} of {trial.pictures} pictures, and "
        f"no probability is further from it than {trial.furthest:.3f}"
    )
    if not trial.passed:
        raise ModelError(f"{found}; that is not near enough, and nothing was recorded")
    where.calibrate(model.name, model.sha256, trial.largest)
    console.say(f"{found}; {model.name} may be served with --precision int8")
    return 0


def verify_models(settings: Settings, _: dict[str, Any]) -> int:
    """Check every model's weights against the recorded SHA-256."""
    where = store.locate(settings.store)
    status = 0
    for name in filter(where.has, where.names()):
        try:
            console.say(f"{name}: {where.verify(name)}")
        except ModelError as error:
            console.say(f"{name}: {error}", stderr=True)
            status = 1
    return status


def classify(settings: Settings, given: dict[str, Any]) -> int:
    """Print the labels of photos; fails if one could not be ranked."""
    files: list[Path] = given["files"]
    for file in files:
        if not file.is_file():
            raise ModelError(f"there is no file {file}")

    async def rank(classifier: Classifier) -> list[Ranked]:
        return await evaluation.rank(classifier, files, plan=settings.views, top_k=given["top_k"])

    ranked = _offline(settings, rank)
    if given["json"]:
        rows = [_as_json(file, answer) for file, answer in zip(files, ranked, strict=True)]
        console.say(json.dumps(rows, indent=2))
    else:
        shown = console.table("", "picture", "label", "probability")
        for file, answer in zip(files, ranked, strict=True):
            _add_ranking(shown, file, answer)
        console.terminal().print(shown)
    return int(any(isinstance(answer, ServiceError) for answer in ranked))


def evaluate(settings: Settings, given: dict[str, Any]) -> int:
    """Print how often the model is right on labelled photos, for each plan of views."""
    folder: Path = given["folder"]
    if given["compare"]:
        return _compare(settings, folder, given["plans"][0])

    async def score(classifier: Classifier) -> list[Score]:
        photos = evaluation.find(folder, classifier.ensemble.labels)
        with _counting() as bar:
            scores = []
            for plan in given["plans"]:
                advance = functools.partial(bar.advance, bar.add_task(plan, total=len(photos)))
                scores.append(await evaluation.evaluate(classifier, photos, plan, advance))
        return scores

    scores = _offline(settings, score)
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

    def ranked(precision: str) -> tuple[list[Photo], list[Ranked]]:
        async def rank(classifier: Classifier) -> tuple[list[Photo], list[Ranked]]:
            labels = classifier.ensemble.labels
            photos = evaluation.find(folder, labels)
            with _counting() as bar:
                advance = functools.partial(bar.advance, bar.add_task(precision, total=len(photos)))
                every = len(labels)
                return photos, await evaluation.rank_all(
                    classifier, photos, plan, advance, top_k=every
                )

        return _offline(settings.model_copy(update={"precision": precision}), rank)

    photos, exact = ranked("float32")
    shown = console.table(
        f"{settings.model}, {plan}, on {folder}",
        *("precision", "photos", "top-1", "top-5", "same first label", "furthest probability"),
    )
    sentences = []
    for precision in runtime.PRECISIONS:
        try:
            answers = exact if precision == "float32" else ranked(precision)[1]
        except ModelError as error:  # int8 is not for every model and device
            sentences.append(f"{precision}: {error}")
            continue
        near = evaluation.compare(photos, exact, answers)
        rates = _rates(evaluation.score(plan, photos, answers))
        shown.add_row(precision, *rates, str(near.same), f"{near.furthest:.4f}")
        sentences += [f"{precision}: {sentence}" for sentence in near.different]
    console.terminal().print(shown)
    for sentence in sentences:
        console.say(sentence)
    return 0


def _rates(score: Score) -> list[str]:
    read = score.photos - len(score.unreadable)
    return [str(read), *(f"{100 * hits / max(read, 1):.1f} %" for hits in (score.top1, score.top5))]


def _counting() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console.terminal(stderr=True))


def bench(settings: Settings, given: dict[str, Any]) -> int:
    """Measure a service, another's if there is a `url`, and print the figures."""
    options = measure.Options(
        seconds=given["seconds"],
        rounds=given["rounds"],
        requests=given["requests"],
        slo=given["slo"] / 1000,
        deadline=given["deadline"] / 1000,
    )
    folder: Path = given["folder"]
    say = functools.partial(console.say, stderr=True)
    report = asyncio.run(
        measure.other(given["url"], folder, options, say)
        if given["url"]
        else measure.ours(settings, folder, options, say)
    )
    if given["json"]:
        console.say(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        console.terminal().print(tables(report))
    return 0


def _offline(settings: Settings, work: Callable[[Classifier], Coroutine[Any, Any, T]]) -> T:
    """Do work with a classifier of one's own, without a server."""

    async def run() -> T:
        classifier = app.create_classifier(settings)
        async with classifier:
            await classifier.ready()
            return await work(classifier)

    return asyncio.run(run())


def _download(where: Store, name: str) -> None:
    where.manifest(name)  # an unknown name needs no progress bar
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console.terminal(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def progress(have: int, total: int | None) -> None:
            bar.update(task, completed=have, total=total)

        digest = weights.fetch(where, name, progress)
    console.say(f"{name} is in {where.root}, SHA-256 {digest}", stderr=True)


def _as_json(file: Path, answer: Ranked) -> dict[str, Any]:
    if isinstance(answer, ServiceError):
        return {"file": str(file), "error": str(answer)}
    return {"file": str(file), "predictions": [dataclasses.asdict(one) for one in answer]}


def _add_ranking(shown: Table, file: Path, answer: Ranked) -> None:
    if isinstance(answer, ServiceError):
        shown.add_row(Text(file.name), str(answer), "", end_section=True)
        return
    for place, one in enumerate(answer):
        name = Text("" if place else file.name)  # not markup, whatever it looks like
        last = place == len(answer) - 1
        shown.add_row(name, one.label, f"{100 * one.probability:.1f} %", end_section=last)
