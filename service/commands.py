"""What each command does, once its arguments are understood."""

import asyncio
import dataclasses
import functools
import json
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from rich.console import Console
from rich.logging import RichHandler
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

from service import app, evaluation, quantization, runtime, store
from service.bench import measure
from service.bench.photos import read
from service.bench.report import tables
from service.classifier import Classifier
from service.ensemble import Ensemble
from service.errors import ModelError, ServiceError
from service.evaluation import Photo, Ranked, Score
from service.settings import Settings
from service.store import Store

Command = Callable[[Settings, dict[str, Any]], int]
"""Takes the settings and the command's own arguments, gives the exit status."""

DRAIN_SECONDS = 30  # what a stop waits for the requests that are being answered
WIDTH = 100  # columns of a table that no terminal shows

T = TypeVar("T")


def serve(settings: Settings, _: dict[str, Any]) -> int:
    """Serve over HTTP until told to stop; fetches what is missing of the model first."""
    handler = RichHandler(console=_console(stderr=True), show_path=False)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", handlers=[handler])
    where = store.locate(settings.store)
    for name in settings.models:
        if not where.has(name):
            _download(where, name)
    failures: list[Exception] = []

    def load(chosen: Settings) -> Ensemble:
        try:
            return app.load(chosen)
        except Exception as error:
            failures.append(error)
            server.should_exit = True  # a service without a model has nothing to stay for
            raise

    config = uvicorn.Config(
        app.create_app(settings, load=load),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    with _ending_well():
        server.run()
    return 1 if failures else 0


@contextmanager
def _ending_well() -> Iterator[None]:
    """Make a stop by signal a success: uvicorn, when it is done, raises what stopped it again."""
    asked = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def list_models(settings: Settings, _: dict[str, Any]) -> int:
    """Print the models and whether their weights are there."""
    where = store.locate(settings.store)
    table = _table(f"Models in {where.root}", "name", "architecture", "weights", "description")
    for name in where.names():
        described = where.manifest(name)
        there = "ready" if where.has(name) else "not fetched"
        table.add_row(name, described.architecture, there, described.description)
    _console().print(table)
    return 0


def fetch_model(settings: Settings, given: dict[str, Any]) -> int:
    """Download a model's weights."""
    _download(store.locate(settings.store), given["name"])
    return 0


def import_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make a file the weights of a model."""
    where = store.locate(settings.store)
    file: Path = given["file"]
    digest = where.install(given["name"], file, source=file.name)
    _say(f"{given['name']} is in {where.root}, SHA-256 {digest}")
    return 0


def quantize_model(settings: Settings, given: dict[str, Any]) -> int:
    """Make int8 a number format of a model, if it agrees with float32 on pictures."""
    where = store.locate(settings.store)
    model = where.load(given["name"])
    trial = quantization.attempt(model, read(given["calibrate"]), max_pixels=settings.max_pixels)
    found = (
        f"int8 has the first label of float32 on {trial.same} of {trial.pictures} pictures, and "
        f"no probability is further from it than {trial.furthest:.3f}"
    )
    if not trial.passed:
        raise ModelError(f"{found}; that is not near enough, and nothing was recorded")
    where.quantize(model, trial.largest)
    _say(f"{found}; {model.name} may be served with --precision int8")
    return 0


def verify_models(settings: Settings, _: dict[str, Any]) -> int:
    """Check every model's weights against the recorded SHA-256."""
    where = store.locate(settings.store)
    status = 0
    for name in filter(where.has, where.names()):
        try:
            _say(f"{name}: {where.verify(name)}")
        except ModelError as error:
            _say(f"{name}: {error}", stderr=True)
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
        _say(json.dumps(rows, indent=2))
    else:
        table = _table("", "picture", "label", "probability")
        for file, answer in zip(files, ranked, strict=True):
            _add_ranking(table, file, answer)
        _console().print(table)
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
        _say(json.dumps([dataclasses.asdict(score) for score in scores], indent=2))
    else:
        table = _table(f"{settings.model} on {folder}", "views", "photos", "top-1", "top-5")
        for one in scores:
            table.add_row(one.views, *_rates(one))
        _console().print(table)
    for sentence in sorted({sentence for one in scores for sentence in one.unreadable}):
        _say(sentence, stderr=True)
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
    table = _table(
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
        table.add_row(precision, *rates, str(near.same), f"{near.furthest:.4f}")
        sentences += [f"{precision}: {sentence}" for sentence in near.different]
    _console().print(table)
    for sentence in sentences:
        _say(sentence)
    return 0


def _rates(score: Score) -> list[str]:
    read = score.photos - len(score.unreadable)
    return [str(read), *(f"{100 * hits / max(read, 1):.1f} %" for hits in (score.top1, score.top5))]


def _counting() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=_console(stderr=True))


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
    say = functools.partial(_say, stderr=True)
    report = asyncio.run(
        measure.other(given["url"], folder, options, say)
        if given["url"]
        else measure.ours(settings, folder, options, say)
    )
    if given["json"]:
        _say(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _console().print(tables(report))
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
    with Progress(*columns, TimeRemainingColumn(), console=_console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def progress(have: int, total: int | None) -> None:
            bar.update(task, completed=have, total=total)

        digest = where.fetch(name, progress)
    _say(f"{name} is in {where.root}, SHA-256 {digest}", stderr=True)


def _as_json(file: Path, answer: Ranked) -> dict[str, Any]:
    if isinstance(answer, ServiceError):
        return {"file": str(file), "error": str(answer)}
    return {"file": str(file), "predictions": [dataclasses.asdict(one) for one in answer]}


def _add_ranking(table: Table, file: Path, answer: Ranked) -> None:
    if isinstance(answer, ServiceError):
        table.add_row(Text(file.name), str(answer), "", end_section=True)
        return
    for place, one in enumerate(answer):
        name = Text("" if place else file.name)  # not markup, whatever it looks like
        last = place == len(answer) - 1
        table.add_row(name, one.label, f"{100 * one.probability:.1f} %", end_section=last)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    return table


_NUMBERS = {
    *("photos", "top-1", "top-5", "probability", "same first label", "furthest probability")
}


def _console(*, stderr: bool = False) -> Console:
    terminal = Console(stderr=stderr)
    return terminal if terminal.is_terminal else Console(stderr=stderr, width=WIDTH)


def _say(sentence: str, *, stderr: bool = False) -> None:
    _console(stderr=stderr).print(
        sentence, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
