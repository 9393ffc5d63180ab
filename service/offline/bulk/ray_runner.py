"""Bulk classification on a Ray cluster: Ray Data shares the files out to actors that classify.

An actor is a classifier as the command has one where it works alone, and reads the images
itself: only names and results go over the network. So every node has to have the same
googlenet-service and store, and the images, all at the same paths.

What is lost with a node is done again: Ray Data restarts the node's actors where there is room,
and has them repeat what nobody got the results of. Results come in the order in which they are
ready. In the order of names, those that follow what was lost would have to wait for it, and
would be lost with this process.
"""

import asyncio
import dataclasses
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from service.errors import BulkError, ServiceError
from service.imaging import image_folder
from service.imaging.image_folder import LeaveOut
from service.offline.bulk import image_source, local_runner
from service.offline.bulk.image_source import Look, Source
from service.offline.bulk.local_runner import Put
from service.offline.bulk.results_file import JSONL, Origin, Row
from service.serving import factory
from service.settings import Settings

_BLOCK = 32 * 1024  # bytes of results, before which none of an archive's would be heard of


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a cluster is, and how much of it may be used; without both Ray and the job decide."""

    address: str | None
    actors: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """What an actor has of its node."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done; what an actor knows of it goes to it once."""

    settings: Settings
    origin: Origin  # that all results are to have
    top_k: int
    paths: Sequence[Path]
    done: Collection[str]  # names that there are results of
    batch: int  # images, most that an actor gets, and whose results it gives, at a time


class Actor:
    """Classifies files; its classifier is loaded once, and ends with the actor's process.

    What keeps it from that is told in its results. Raised, it would come out of Ray as many
    pages, without being another kind of end.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._servable = factory.create_served_model(task.settings)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._failure = ""
        self._left_out: list[tuple[str, str]] = []  # of archives, and not yet in the results
        try:
            self._runner.run(self._begin())
        except ServiceError as error:
            self._failure = _here(error)

    async def _begin(self) -> None:
        await self._servable.__aenter__()  # nobody leaves: Ray ends the process
        # Without the images this node would find fault with every one of them.
        image_source.check(self._task.paths)
        here = local_runner.origin(await self._servable.ready(), self._task.settings)
        if here != self._task.origin:
            raise BulkError(f"the store here has {here}, not {self._task.origin}")

    def __call__(self, portions: Any) -> Iterator[Any]:
        """Take a table of lists of `file` (bytes) and `name`; gives tables of results.

        Each result has a `record`, which is a journal's, a `failure`, or what was `left_out` of an
        archive, with its `kind`.
        """
        found = self._found(portions.to_pylist())
        records = [b""]
        while records and not self._failure:
            records = self._ranked(islice(found, self._task.batch))
            left_out, self._left_out = self._left_out, []
            if records or left_out:
                yield _results(records, left_out)
        if self._failure:
            yield _results([], failure=self._failure)

    def _found(self, portions: Iterable[Mapping[str, Any]]) -> Iterator[Source]:
        look = Look(
            self._task.settings.max_body_bytes,
            image_source.once({*self._task.done}),
            lambda name, kind: self._left_out.append((name, kind)),
        )
        for portion in portions:
            for there, name in zip(portion["file"], portion["name"], strict=True):
                file = os.fsdecode(there)
                yield from image_source.inside(file, name, look)

    def _ranked(self, found: Iterator[Source]) -> list[bytes]:
        records: list[bytes] = []

        def put(row: Row) -> None:
            records.append(JSONL.encode(row))

        settings, top_k = self._task.settings, self._task.top_k
        try:
            self._runner.run(
                local_runner.rank(self._servable.classifier, found, put, settings, top_k)
            )
        except ServiceError as error:
            self._failure = _here(error)
        return records


def _here(error: ServiceError) -> str:
    return f"{socket.gethostname()}: {error}"


def files(
    paths: Iterable[Path], done: Collection[str], leave_out: LeaveOut = image_folder.ignore
) -> Iterator[str]:
    """Find the files that there are no results of yet, and archives whatever there is of them."""
    for file in dict.fromkeys(image_source.files(paths, leave_out)):
        if image_source.is_archive(file) or image_source.named(file) not in done:
            yield file


def spread(
    task: Task, files: Iterable[str], put: Put, leave_out: LeaveOut, cluster: Cluster
) -> float:
    """Have a cluster classify files, and put a row for each image; gives the seconds.

    Raises `BulkError` without Ray, without a cluster, without a node that can hold an actor, or
    with what ended the work.
    """
    ray = _ray()
    tables = [_portion(part) for part in portions(files, task.batch)]
    with _joined(ray, cluster.address):
        started = time.monotonic()
        for result in _classified(ray, task, tables, cluster.actors).iter_rows():
            if result["left_out"]:
                leave_out(result["left_out"], result["kind"])
            else:
                put(row(result))
        return time.monotonic() - started


def row(result: Mapping[str, Any]) -> Row:
    """Take a row out of an actor's results. Raises `BulkError` with what keeps it from its work."""
    if result["failure"]:
        raise BulkError(result["failure"])
    return Row.of(JSONL.decode(result["record"]))


def _classified(ray: Any, task: Task, tables: Sequence[Any], actors: int | None) -> Any:
    """Give the dataset of what actors make of portions; it is worked on when it is read."""
    mine = share(task.settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    return ray.data.from_arrow(tables).map_batches(
        Actor,
        batch_size=1,  # row, which is a portion; with GPUs Ray has to be told a number
        batch_format="pyarrow",
        fn_constructor_args=[_known(task, mine)],
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=mine.cpus,
        num_gpus=mine.gpus,
    )


def _known(task: Task, share: Share) -> Task:
    """Give of a task what an actor has to know."""
    archives = tuple(
        image_source.named(str(path)) for path in task.paths if image_source.is_archive(path.name)
    )
    return dataclasses.replace(
        task,
        settings=within(share, task.settings),
        paths=[path.absolute() for path in task.paths],
        done=frozenset(name for name in task.done if name.startswith(archives)),
    )


def portions(files: Iterable[str], most: int) -> Iterator[list[str]]:
    """Part files into what an actor gets at a time: so many of them, or an archive alone."""
    images: list[str] = []
    for file in files:
        if image_source.is_archive(file):
            yield [file]
            continue
        images.append(file)
        if len(images) == most:
            yield images
            images = []
    if images:
        yield images


def share(settings: Settings, nodes: Iterable[Mapping[str, float]]) -> Share:
    """Decide what an actor has of its node, from what each node has (`CPU`, `GPU`).

    A GPU, if the device may be one and a node can hold such an actor; as many CPUs as are said, or
    all there are for it on the smallest of the nodes that it fits on. Raises `BulkError` if it
    fits on none: Ray would wait for a node that it does.
    """
    has = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    least = settings.cpu_threads or 1
    may_have = settings.device == "auto" and any(cpus >= least and each for cpus, each in has)
    gpus = int(may_have or settings.device.startswith("cuda"))
    fitting = [(cpus, each) for cpus, each in has if cpus >= least and each >= gpus]
    if not fitting:
        cpus, each = max(has, key=lambda node: (min(node[1], gpus), node), default=(0, 0))
        raise BulkError(
            f"no node of the cluster can hold an actor, which wants {least} CPU and {gpus} GPU:"
            f" the largest has {cpus} CPU and {each} GPU"
        )
    concurrency = [cpus // each if gpus else cpus for cpus, each in fitting]
    return Share(settings.cpu_threads or min(filter(None, concurrency), default=1), gpus)


def within(share: Share, settings: Settings) -> Settings:
    """Keep a classifier to its share.

    Of a node's GPUs Ray shows an actor its own alone, whatever the number it has on the node.
    """
    return settings.model_copy(
        update={
            "cpu_threads": share.cpus,
            "decode_threads": settings.decode_threads or share.cpus,
            "device": settings.device.partition(":")[0] if share.gpus else "cpu",
        }
    )


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    """Join a cluster, or begin one on this machine where Ray knows of none.

    What Ray has to say is said on standard error.
    """
    on_end = signal.getsignal(signal.SIGTERM)
    with redirect_stdout(sys.stderr):
        try:
            quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
            ray.init(address, include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BulkError(f"the Ray cluster cannot be joined: {error}") from error
        try:
            signal.signal(signal.SIGTERM, on_end)  # which Ray has made its own
            yield
        finally:
            ray.shutdown()


def _ray() -> Any:
    """Import Ray, and have it tell nobody that it is used, and the terminal only of errors."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        data = importlib.import_module("ray.data")
    except ImportError as error:
        raise BulkError("--engine ray needs Ray: pip install 'googlenet-service[ray]'") from error
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # which is Ray's own; there may be others'
            handler.setLevel(logging.ERROR)
    return importlib.import_module("ray")


def _portion(files: Sequence[str]) -> Any:
    """Make a row of files: each by its name here, and where it is whoever reads it."""
    there = [os.fsencode(Path(file).absolute()) for file in files]
    return _table(file=[there], name=[[*map(image_source.named, files)]])


def _results(
    records: Sequence[bytes], left_out: Sequence[tuple[str, str]] = (), failure: str = ""
) -> Any:
    """Make a table of results, of which each has one of the three."""
    rows = [
        *((record, "", "", "") for record in records),
        *((b"", name, kind, "") for name, kind in left_out),
        *[(b"", "", "", failure)] * bool(failure),
    ]
    names = ("record", "left_out", "kind", "failure")
    return _table(**dict(zip(names, zip(*rows, strict=True), strict=True)))


def _table(**columns: Sequence[Any]) -> Any:
    return importlib.import_module("pyarrow").table(columns)
