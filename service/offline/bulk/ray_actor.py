"""The Ray actor: a classifier on a node, from batches of file names to tables of results."""

import asyncio
import importlib
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from service.errors import BulkError, ServiceError
from service.imaging.archives import Look, Source
from service.offline.bulk import image_source, local_runner
from service.offline.bulk.results_file import JSONL, Origin, Row
from service.serving import factory
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Task:
    """The work of a run; each actor gets it once."""

    settings: Settings
    origin: Origin  # that all results have to have
    top_k: int
    paths: Sequence[Path]
    done: Collection[str]  # names that have results
    batch: int  # most images in a batch of files, and in a table of results


class Actor:
    """Classifies files; its classifier is loaded once, and ends with the actor's process.

    A failure is returned among the results. Raised, it would come out of Ray as many pages.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._served_model = factory.create_served_model(task.settings)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._failure = ""
        self._left_out: list[tuple[str, str]] = []  # of archives, and not yet in the results
        try:
            self._runner.run(self._start())
        except ServiceError as error:
            self._failure = _on_host(error)

    async def _start(self) -> None:
        await self._served_model.__aenter__()  # never left: Ray ends the process
        # On a node without the images, every image would have an error.
        image_source.check(self._task.paths)
        origin = local_runner.origin(await self._served_model.ready(), self._task.settings)
        if origin != self._task.origin:
            raise BulkError(f"the store here has {origin}, not {self._task.origin}")

    def __call__(self, batches: Any) -> Iterator[Any]:
        """Take a table of lists of `file` (bytes) and `name`; yields tables of results.

        Each result has a `record` (of a JSON Lines results file), a `failure`, or what was
        `left_out` of an archive, with its `kind`.
        """
        sources = self._sources(batches.to_pylist())
        records = [b""]
        while records and not self._failure:
            records = self._ranked(islice(sources, self._task.batch))
            left_out, self._left_out = self._left_out, []
            if records or left_out:
                yield _results(records, left_out)
        if self._failure:
            yield _results([], failure=self._failure)

    def _sources(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Source]:
        look = Look(
            self._task.settings.max_body_bytes,
            image_source.once({*self._task.done}),
            lambda name, kind: self._left_out.append((name, kind)),
        )
        for batch in batches:
            for file, name in zip(batch["file"], batch["name"], strict=True):
                yield from image_source.inside(os.fsdecode(file), name, look)

    def _ranked(self, sources: Iterator[Source]) -> list[bytes]:
        records: list[bytes] = []

        def put(row: Row) -> None:
            records.append(JSONL.encode(row))

        settings, top_k = self._task.settings, self._task.top_k
        try:
            self._runner.run(
                local_runner.rank(self._served_model.classifier, sources, put, settings, top_k)
            )
        except ServiceError as error:
            self._failure = _on_host(error)
        return records


def _on_host(error: ServiceError) -> str:
    return f"{socket.gethostname()}: {error}"


def table(**columns: Sequence[Any]) -> Any:
    """Make a table of columns."""
    return importlib.import_module("pyarrow").table(columns)


def _results(
    records: Sequence[bytes], left_out: Sequence[tuple[str, str]] = (), failure: str = ""
) -> Any:
    """Make a table of results, each of one of the three."""
    rows = [
        *((record, "", "", "") for record in records),
        *((b"", name, kind, "") for name, kind in left_out),
        *[(b"", "", "", failure)] * bool(failure),
    ]
    names = ("record", "left_out", "kind", "failure")
    return table(**dict(zip(names, zip(*rows, strict=True), strict=True)))


def row(result: Mapping[str, Any]) -> Row:
    """Decode the row of a result. Raises `BulkError` with the actor's failure."""
    if result["failure"]:
        raise BulkError(result["failure"])
    return Row.of(JSONL.decode(result["record"]))
