"""The command that names what is on images: a few on the terminal, or a million in a file."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.progress import Progress
from rich.text import Text

from service.cli import console, evaluate, progress
from service.errors import BulkError
from service.imaging.image_folder import LeftOut
from service.offline.bulk import (
    image_source,
    local_runner,
    ray_runner,
    remote_runner,
    results_file,
    results_parquet,
)
from service.offline.bulk.image_source import IsNew, Source
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


@dataclasses.dataclass(slots=True)
class _Printed:
    """Keeps results to show them when all are there."""

    rows: list[Row] = dataclasses.field(default_factory=list)

    def write(self, row: Row) -> None:
        self.rows.append(row)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """Keeps results in a file, which has those of one model and the same views."""

    out: Path
    results: ResultsFile
    wanted: Mapping[str, str]  # of their origin

    def check(self, wanted: Mapping[str, str]) -> None:
        """Raise `BulkError` if there are results by something else than is wanted."""
        for one in self.results.origins:
            if not one.fits(wanted):
                raise BulkError(
                    f"{self.out} has results by {one}; name another file for those by"
                    f" {results_file.told(wanted)}"
                )

    def write(self, row: Row) -> None:
        if row.origin and row.origin not in self.results.origins:
            # A service may have loaded another version: its results say so.
            self.check({"model": row.origin.model, "views": row.origin.views})
            if not row.origin.fits(self.wanted):
                raise BulkError(
                    f"{self.out} is for results by {results_file.told(self.wanted)}; these are by"
                    f" {row.origin}"
                )
            self.results.origins.add(row.origin)
        self.results.write(row)


class _Sink(Protocol):
    def write(self, row: Row) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done, and how many images were before."""

    settings: Settings
    given: dict[str, Any]
    before: int = 0
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    @property
    def paths(self) -> list[Path]:
        paths: list[Path] = self.given["files"]
        return paths

    def sources(self, is_new: IsNew) -> Iterator[Source]:
        """Find its images."""
        return image_source.images(
            self.paths,
            max_bytes=self.settings.max_body_bytes,
            is_new=is_new,
            leave_out=self.left_out.add,
        )


@dataclasses.dataclass(slots=True)
class _Done:
    """What was done of it."""

    images: int = 0
    failures: int = 0
    seconds: float = 0.0


def classify(settings: Settings, given: dict[str, Any]) -> int:
    """Print the labels of images, or write them to a file; fails if one could not be ranked."""
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
    printed = _Printed()
    done = _work(job, job.sources(lambda _: True), _ranking(job), printed)
    if job.given["json"]:
        rows = [_as_json(row) for row in printed.rows]
        console.say(json.dumps(rows, indent=2))
    else:
        shown = console.table("", "image", "label", "probability")
        for row in printed.rows:
            for cells, last in _cells(row):
                shown.add_row(*cells, end_section=last)
        console.terminal().print(shown)
    if job.left_out.sentence:
        console.say(job.left_out.sentence, stderr=True)
    return int(done.failures > 0)


def _as_json(row: Row) -> dict[str, Any]:
    if row.error is not None:
        return {"file": row.file, "error": row.error}
    return {"file": row.file, "predictions": [*row.predictions]}


def _cells(row: Row) -> Iterator[tuple[tuple[Text, str, str], bool]]:
    name = Text(Path(row.file).name)  # not markup, whatever it looks like
    if row.error is not None:
        yield (name, row.error, ""), True
    for place, one in enumerate(row.predictions):
        last = place == len(row.predictions) - 1
        rate = f"{100 * one['probability']:.1f} %"
        yield (Text("") if place else name, one["label"], rate), last


def _write(job: _Job, results: ResultsFile) -> _Done:
    """Classify what there are no results of yet, if what there are were made in the same way."""
    done, kept = results.done, _Kept(job.given["out"], results, wanted := _wanted(job))
    kept.check(wanted)
    if job.given["engine"] == "ray":
        spreading = partial(_spreading, job, Origin(**wanted), done)
        files = ray_runner.files(job.paths, done, job.left_out.add)
        return _work(job, files, spreading, kept)
    return _work(job, job.sources(image_source.once(done)), _ranking(job), kept)


def _wanted(job: _Job) -> Mapping[str, str]:
    """Say by what images are to be named, as far as that is not left to a service."""
    if not job.given["url"]:
        return local_runner.expected(job.settings).columns
    chosen = job.settings.model_fields_set & {"model", "views"}
    return {name: getattr(job.settings, name) for name in chosen}


def _ranking(job: _Job) -> Callable[[Iterator[Source], Put], float]:
    """Give what classifies images that are found here: a service, or a model of one's own."""
    if not job.given["url"]:
        return partial(_computing, job)
    asked = {"top_k": job.given["top_k"], **_wanted(job)}
    say = partial(console.say, stderr=True)
    service = remote_runner.Service(
        job.given["url"], job.given["key"], job.given["wait"], say, asked
    )
    return partial(remote_runner.rank, service)


def _work(
    job: _Job, found: Iterator[T], work: Callable[[Iterator[T], Put], float], sink: _Sink
) -> _Done:
    """Have `work` done on what is found, if anything is: a model takes a while to load."""
    done = _Done()
    if (first := next(found, None)) is not None:
        with _bar(job) as advance:

            def put(row: Row) -> None:
                sink.write(row)
                done.images += 1
                done.failures += row.error is not None
                advance()

            done.seconds = work(itertools.chain([first], found), put)
    if not (done.images or job.before):
        raise BulkError(
            "; ".join(filter(None, ["there are no images there", job.left_out.sentence]))
        )
    return done


def _computing(job: _Job, found: Iterator[Source], put: Put) -> float:
    """Classify with a model of one's own; gives the seconds from when it was there."""

    async def work(classifier: Classifier) -> float:
        started = time.monotonic()
        await local_runner.rank(classifier, found, put, job.settings, job.given["top_k"])
        return time.monotonic() - started

    return evaluate.run(job.settings, work)


def _spreading(job: _Job, origin: Origin, done: set[str], files: Iterator[str], put: Put) -> float:
    """Have a Ray cluster classify; gives the seconds from when it was joined."""
    given = job.given
    task = ray_runner.Task(
        job.settings, origin, given["top_k"], job.paths, done, given["ray_batch"]
    )
    chosen = ray_runner.Cluster(given["ray_address"], given["ray_actors"])
    return ray_runner.spread(task, files, put, job.left_out.add, chosen)


@contextlib.contextmanager
def _bar(job: _Job) -> Iterator[Callable[[], None]]:
    """Show how far it is, where somebody sees it; gives what to tell of each image."""
    shown: Progress = progress.counting()
    if job.given["out"] is None or not shown.console.is_terminal:
        yield lambda: None
        return
    with shown as bar:
        task = bar.add_task(
            str(job.given["out"]), total=image_source.count(job.paths), completed=job.before
        )
        yield lambda: bar.advance(task)


def _summary(done: _Done, job: _Job) -> str:
    rate = done.images / done.seconds if done.seconds else 0.0
    sentence = (
        f"{done.images} images, {done.failures} failures, {done.seconds:.1f} s,"
        f" {rate:.1f} images a second"
    )
    if job.before:
        sentence += f"; {job.before} were there before"
    return "; ".join(filter(None, [sentence, job.left_out.sentence]))
