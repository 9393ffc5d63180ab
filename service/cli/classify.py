"""The classify command: images to a table on the terminal, or to a file of results."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress
from rich.text import Text

from service.cli import console, offline, progress
from service.errors import BulkError
from service.imaging.archives import IsNew, Source
from service.imaging.image_folder import LeftOut
from service.offline.bulk import (
    image_source,
    local_runner,
    ray_actor,
    ray_runner,
    remote_runner,
    results_file,
    results_parquet,
)
from service.offline.bulk.local_runner import Put
from service.offline.bulk.results_file import CSV, JSONL, Origin, ResultsFile, Row
from service.serving.classifier import Classifier
from service.settings import Settings

T = TypeVar("T")

_FORMATS: dict[str, Callable[[Path], AbstractContextManager[ResultsFile]]] = {
    ".parquet": results_parquet.opened,
    ".csv": partial(results_file.opened, form=CSV),
    ".jsonl": partial(results_file.opened, form=JSONL),
}


@dataclasses.dataclass(frozen=True, slots=True)
class _FileSink:
    """Write results to a file, which has those of one model and view plan."""

    out: Path
    results: ResultsFile
    expected: Mapping[str, str]  # origin of the results

    def check(self, expected: Mapping[str, str]) -> None:
        """Raise `BulkError` if the file has results of another origin."""
        for origin in self.results.origins:
            if not origin.fits(expected):
                raise BulkError(
                    f"{self.out} has results by {origin}; name another file for those by"
                    f" {results_file.describe(expected)}"
                )

    def write(self, row: Row) -> None:
        if row.origin and row.origin not in self.results.origins:
            # The service may have loaded another version of the model.
            self.check({"model": row.origin.model, "views": row.origin.views})
            if not row.origin.fits(self.expected):
                expected = results_file.describe(self.expected)
                raise BulkError(
                    f"{self.out} is for results by {expected}; these are by {row.origin}"
                )
            self.results.origins.add(row.origin)
        self.results.write(row)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of a run, and the number of results that the file has already."""

    settings: Settings
    given: dict[str, Any]
    before: int = 0
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    @property
    def paths(self) -> list[Path]:
        paths: list[Path] = self.given["files"]
        return paths

    def sources(self, is_new: IsNew) -> Iterator[Source]:
        """Find the images to classify."""
        return image_source.images(
            self.paths,
            max_bytes=self.settings.max_body_bytes,
            is_new=is_new,
            leave_out=self.left_out.add,
        )


@dataclasses.dataclass(slots=True)
class _Counts:
    """Counts of a run, and its duration."""

    images: int = 0
    failures: int = 0
    seconds: float = 0.0


def classify(settings: Settings, given: dict[str, Any]) -> int:
    """Print the labels of images, or write them to a file; returns 1 if an image failed."""
    job = _Job(settings, given)
    image_source.check(job.paths)
    out: Path | None = given["out"]
    if out is None:
        if given["engine"] == "ray":
            raise BulkError("--engine ray writes a file: name it with --out")
        return _print(job)
    if out.suffix not in _FORMATS:
        raise BulkError(f"{out}: name a file that ends with {', '.join(_FORMATS)}")
    with _FORMATS[out.suffix](out) as results:
        job = _Job(settings, given, before=len(results.done))
        done = _write(job, results)
    failures = results.failures + done.failures
    console.say(_summary(done, job), stderr=True)
    return int(failures > 0)


def _print(job: _Job) -> int:
    rows: list[Row] = []
    done = _work(job, job.sources(lambda _: True), _ranking(job), rows.append)
    if job.given["json"]:
        console.say(json.dumps([_as_json(row) for row in rows], indent=2))
    else:
        table = console.table("", "image", "label", "probability")
        for row in rows:
            for cells, is_last in _cells(row):
                table.add_row(*cells, end_section=is_last)
        console.terminal().print(table)
    if job.left_out.sentence:
        console.say(job.left_out.sentence, stderr=True)
    return int(done.failures > 0)


def _as_json(row: Row) -> dict[str, Any]:
    if row.error is not None:
        return {"file": row.file, "error": row.error}
    return {"file": row.file, "predictions": [*row.predictions]}


def _cells(row: Row) -> Iterator[tuple[tuple[Text, str, str], bool]]:
    name = Text(Path(row.file).name)  # never markup
    if row.error is not None:
        yield (name, row.error, ""), True
    for rank, prediction in enumerate(row.predictions):
        is_last = rank == len(row.predictions) - 1
        probability = f"{100 * prediction['probability']:.1f} %"
        yield (Text("") if rank else name, prediction["label"], probability), is_last


def _write(job: _Job, results: ResultsFile) -> _Counts:
    """Classify images that the file has no results of, if its results are of the same origin."""
    done, expected = results.done, _expected(job)
    sink = _FileSink(job.given["out"], results, expected)
    sink.check(expected)
    if job.given["engine"] == "ray":
        rank = partial(_rank_on_ray, job, Origin(**expected), done)
        files = ray_runner.files(job.paths, done, job.left_out.add)
        return _work(job, files, rank, sink.write)
    return _work(job, job.sources(image_source.once(done)), _ranking(job), sink.write)


def _expected(job: _Job) -> Mapping[str, str]:
    """Return the origin of the results, as far as it is not the choice of a service."""
    if not job.given["url"]:
        return local_runner.expected(job.settings).columns
    chosen = job.settings.model_fields_set & {"model", "views"}
    return {name: getattr(job.settings, name) for name in chosen}


def _ranking(job: _Job) -> Callable[[Iterator[Source], Put], float]:
    """Return the function that classifies: with a service, or with a model in this process."""
    if not job.given["url"]:
        return partial(_rank_locally, job)
    parameters = {"top_k": job.given["top_k"], **_expected(job)}
    log = partial(console.say, stderr=True)
    service = remote_runner.Service(
        job.given["url"], job.given["key"], job.given["wait"], log, parameters
    )
    return partial(remote_runner.rank, service)


def _work(
    job: _Job, images: Iterator[T], rank: Callable[[Iterator[T], Put], float], write: Put
) -> _Counts:
    """Rank images, if there are any, before a model is loaded; raises `BulkError` if not."""
    done = _Counts()
    if (first := next(images, None)) is not None:
        with _bar(job) as advance:

            def put(row: Row) -> None:
                write(row)
                done.images += 1
                done.failures += row.error is not None
                advance()

            done.seconds = rank(itertools.chain([first], images), put)
    if not (done.images or job.before):
        raise BulkError("; ".join(filter(None, ["no images found", job.left_out.sentence])))
    return done


def _rank_locally(job: _Job, sources: Iterator[Source], put: Put) -> float:
    """Classify in this process; returns the seconds from when the model was loaded."""

    async def work(classifier: Classifier) -> float:
        started = time.monotonic()
        await local_runner.rank(classifier, sources, put, job.settings, job.given["top_k"])
        return time.monotonic() - started

    return offline.run(job.settings, work)


def _rank_on_ray(
    job: _Job, origin: Origin, done: set[str], files: Iterator[str], put: Put
) -> float:
    """Classify on a Ray cluster; returns the seconds from when it was joined."""
    given = job.given
    task = ray_actor.Task(job.settings, origin, given["top_k"], job.paths, done, given["ray_batch"])
    chosen = ray_runner.Cluster(given["ray_address"], given["ray_actors"])
    return ray_runner.rank(task, files, put, job.left_out.add, chosen)


@contextlib.contextmanager
def _bar(job: _Job) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; yields the function to call after each image."""
    bar: Progress = progress.counting()
    if job.given["out"] is None or not bar.console.is_terminal:
        yield lambda: None
        return
    with bar:
        task = bar.add_task(
            str(job.given["out"]), total=image_source.count(job.paths), completed=job.before
        )
        yield lambda: bar.advance(task)


def _summary(done: _Counts, job: _Job) -> str:
    rate = done.images / done.seconds if done.seconds else 0.0
    sentence = (
        f"{done.images} images, {done.failures} failures, {done.seconds:.1f} s,"
        f" {rate:.1f} images a second"
    )
    if job.before:
        sentence += f"; {job.before} were done before"
    return "; ".join(filter(None, [sentence, job.left_out.sentence]))
