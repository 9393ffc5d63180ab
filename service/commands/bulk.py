"""The command that names what is on pictures: a few on the terminal, or a million in a file."""

import asyncio
import contextlib
import dataclasses
import importlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.progress import Progress
from rich.text import Text

from service import console, in_order, journal, parquet, processors, sources
from service.classifier import Answer, Classifier
from service.commands import offline, progress
from service.errors import BulkError, ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.evaluation import PATIENCE
from service.journal import CSV, JSONL, Journal, Row
from service.pace import Pace
from service.settings import Settings
from service.sources import IsNew, Source

SERVICE_PATIENCE = 600.0  # seconds that a service may refuse a picture, or not be there

_FORMATS: dict[str, Callable[[Path], AbstractContextManager[Journal]]] = {
    ".parquet": parquet.opened,
    ".csv": partial(journal.opened, form=CSV),
    ".jsonl": partial(journal.opened, form=JSONL),
}
_PREDICTION = ("label", "wnid", "index", "probability")
_BAD = (TooLarge, UnsupportedType, UnreadableImage)  # a picture's own faults
_BAD_CODES = {error.code for error in _BAD} | {"malformed"}  # which is what an empty one is called


@dataclasses.dataclass(slots=True)
class _Printed:
    """Keeps results to show them when all are there."""

    rows: list[Row] = dataclasses.field(default_factory=list)

    def write(self, row: Row) -> None:
        self.rows.append(row)


class _Sink(Protocol):
    def write(self, row: Row) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done, and how many pictures were before."""

    settings: Settings
    given: dict[str, Any]
    before: int = 0

    @property
    def paths(self) -> list[Path]:
        paths: list[Path] = self.given["files"]
        return paths

    def sources(self, is_new: IsNew) -> Iterator[Source]:
        """Find its pictures."""
        return sources.pictures(self.paths, max_bytes=self.settings.max_body_bytes, is_new=is_new)


@dataclasses.dataclass(slots=True)
class _Done:
    """What was done of it."""

    pictures: int = 0
    failures: int = 0
    seconds: float = 0.0


Put = Callable[[Row], None]


def classify(settings: Settings, given: dict[str, Any]) -> int:
    """Print the labels of pictures, or write them to a file; fails if one could not be ranked."""
    job = _Job(settings, given)
    sources.check(job.paths)
    out: Path | None = given["out"]
    if out is None:
        return _print(job)
    if out.suffix not in _FORMATS:
        raise BulkError(f"{out}: name a file that ends with {', '.join(_FORMATS)}")
    with _FORMATS[out.suffix](out) as results:
        job = _Job(settings, given, before=len(results.done))
        done = _work(job, job.sources(_once(results.done)), results)
    failures = results.failures + done.failures
    console.say(_summary(done, job.before), stderr=True)
    return int(failures > 0)


def _print(job: _Job) -> int:
    printed = _Printed()
    done = _work(job, job.sources(lambda _: True), printed)
    if job.given["json"]:
        rows = [_as_json(row) for row in printed.rows]
        console.say(json.dumps(rows, indent=2))
    else:
        shown = console.table("", "picture", "label", "probability")
        for row in printed.rows:
            for cells, last in _cells(row):
                shown.add_row(*cells, end_section=last)
        console.terminal().print(shown)
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


def _once(done: set[str]) -> IsNew:
    """Say of each name once that it is to be done; what comes again by its name is not."""

    def is_new(name: str) -> bool:
        if name in done:
            return False
        done.add(name)
        return True

    return is_new


def _work(job: _Job, found: Iterator[Source], sink: _Sink) -> _Done:
    """Classify what is found, here or by a service."""
    done = _Done()
    first = next(found, None)
    if first is None:
        if not job.before:
            raise BulkError("there are no pictures there")
        return done  # without a model, which takes a while
    with _bar(job) as advance:

        def put(row: Row) -> None:
            sink.write(row)
            done.pictures += 1
            done.failures += row.error is not None
            advance()

        work = _asking if job.given["url"] else _computing
        done.seconds = work(job, itertools.chain([first], found), put)
    return done


def _computing(job: _Job, found: Iterator[Source], put: Put) -> float:
    """Classify with a model of one's own; gives the seconds from when it was there."""
    settings, plan, top_k = job.settings, job.settings.views, job.given["top_k"]
    decoding = settings.decode_threads or processors.available()

    async def work(classifier: Classifier) -> float:
        async def row(source: Source) -> Row:
            try:
                data = await asyncio.to_thread(source.read)
            except ServiceError as error:
                return Row(source.name, error=str(error))
            [answer] = await classifier.classify([data], plan=plan, top_k=top_k, seconds=PATIENCE)
            if isinstance(answer, Answer):
                return Row(source.name, _plain(answer.predictions))
            if isinstance(answer, _BAD):
                return Row(source.name, error=str(answer))
            raise answer

        room = classifier.room(plan, decoding)
        started = time.monotonic()
        await in_order.run(found, row, put, lambda: room)
        return time.monotonic() - started

    return offline.run(settings, work)


def _asking(job: _Job, found: Iterator[Source], put: Put) -> float:
    """Have a service classify, as many at a time as it takes; gives the seconds."""
    client, given = _client(), job.given
    chosen = job.settings.model_fields_set & {"model", "views"}  # else it is the service's choice
    wanted = {name: getattr(job.settings, name) for name in chosen}
    pace = Pace()

    def waiting(_: Exception, seconds: float) -> None:
        nonlocal pace
        pace = pace.refused(time.monotonic(), seconds)

    async def main() -> float:
        try:
            asked = client.AsyncClient(
                given["url"], key=given["key"], timeout=SERVICE_PATIENCE, waiting=waiting
            )
        except ValueError as error:
            raise BulkError(f"{error}") from error
        async with asked:

            async def row(source: Source) -> Row:
                nonlocal pace
                try:
                    data = await asyncio.to_thread(source.read)
                    ranking = await asked.classify(data, top_k=given["top_k"], **wanted)
                except ServiceError as error:
                    return Row(source.name, error=str(error))
                except client.ClientError as error:
                    if error.code in _BAD_CODES:
                        return Row(source.name, error=error.detail)
                    raise BulkError(f"{source.name}: {error.detail}") from error
                pace = pace.answered()
                return Row(source.name, _plain(ranking.predictions))

            started = time.monotonic()
            await in_order.run(found, row, put, lambda: pace.most)
            return time.monotonic() - started

    return asyncio.run(main())


def _plain(predictions: Iterable[Any]) -> list[dict[str, Any]]:
    """Give what a row has of predictions, ours or the client's; `asdict` would take longer."""
    return [{name: getattr(one, name) for name in _PREDICTION} for one in predictions]


def _client() -> Any:
    try:
        return importlib.import_module("service.client")
    except ImportError as error:
        raise BulkError("--url needs httpx2: pip install 'googlenet-service[client]'") from error


@contextlib.contextmanager
def _bar(job: _Job) -> Iterator[Callable[[], None]]:
    """Show how far it is, where somebody sees it; gives what to tell of each picture."""
    shown: Progress = progress.counting()
    if job.given["out"] is None or not shown.console.is_terminal:
        yield lambda: None
        return
    with shown as bar:
        task = bar.add_task(
            str(job.given["out"]), total=sources.count(job.paths), completed=job.before
        )
        yield lambda: bar.advance(task)


def _summary(done: _Done, before: int) -> str:
    rate = done.pictures / done.seconds if done.seconds else 0.0
    sentence = (
        f"{done.pictures} pictures, {done.failures} failures, {done.seconds:.1f} s,"
        f" {rate:.1f} pictures a second"
    )
    return sentence + (f"; {before} were there before" if before else "")
