"""Bulk classification on a Ray cluster: Ray Data distributes the files to actors that classify.

An actor reads the images itself: only names and results go over the network. So every node has
to have the same googlenet-service and store, and the images, all at the same paths.

Work that is lost with a node is repeated: Ray Data restarts the node's actors where there is
capacity, and repeats the batches without results. Results come as soon as they are ready. In the
order of names, those after a lost one would wait for it, and be lost with this process.
"""

import dataclasses
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import BulkError
from service.imaging import archives, image_folder
from service.imaging.image_folder import LeaveOut
from service.offline.bulk import image_source, ray_actor
from service.offline.bulk.local_runner import Put
from service.offline.bulk.ray_actor import Actor, Task
from service.settings import Settings

_BLOCK = 32 * 1024  # bytes of results that Ray collects before it hands them on


@dataclass(frozen=True, slots=True)
class Cluster:
    """The address of a cluster and how many actors to start; None leaves each to Ray."""

    address: str | None
    actors: int | None


@dataclass(frozen=True, slots=True)
class Resources:
    """The CPUs and GPUs of one actor."""

    cpus: int
    gpus: int


def files(
    paths: Iterable[Path], done: Collection[str], leave_out: LeaveOut = image_folder.ignore
) -> Iterator[str]:
    """Find the image files without results, and all archives."""
    for file in dict.fromkeys(image_source.files(paths, leave_out)):
        if image_source.is_archive(file) or archives.printable(file) not in done:
            yield file


def rank(
    task: Task, files: Iterable[str], put: Put, leave_out: LeaveOut, cluster: Cluster
) -> float:
    """Classify files on a cluster, and put a row for each image; returns the seconds.

    Raises `BulkError` without Ray, without a cluster, without a node that can hold an actor, or
    with the failure of an actor.
    """
    ray = _ray()
    tables = [_table(batch) for batch in batches(files, task.batch)]
    with _joined(ray, cluster.address):
        started = time.monotonic()
        for result in _results(ray, task, tables, cluster.actors).iter_rows():
            if result["left_out"]:
                leave_out(result["left_out"], result["kind"])
            else:
                put(ray_actor.row(result))
        return time.monotonic() - started


def _results(ray: Any, task: Task, tables: Sequence[Any], actors: int | None) -> Any:
    """Return the lazy dataset of the actors' results."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = actor_resources(task.settings, nodes)
    return ray.data.from_arrow(tables).map_batches(
        Actor,
        batch_size=1,  # row, which is a batch of files; with GPUs Ray requires a number
        batch_format="pyarrow",
        fn_constructor_args=[_for_actor(task, resources)],
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )


def _for_actor(task: Task, resources: Resources) -> Task:
    """Reduce a task to what an actor needs, with absolute paths."""
    prefixes = tuple(
        archives.printable(str(path)) for path in task.paths if image_source.is_archive(path.name)
    )
    return dataclasses.replace(
        task,
        settings=limit_settings(resources, task.settings),
        paths=[path.absolute() for path in task.paths],
        done=frozenset(name for name in task.done if name.startswith(prefixes)),
    )


def batches(files: Iterable[str], size: int) -> Iterator[list[str]]:
    """Group files into batches of up to `size` images; an archive is a batch of its own."""
    images: list[str] = []
    for file in files:
        if image_source.is_archive(file):
            yield [file]
            continue
        images.append(file)
        if len(images) == size:
            yield images
            images = []
    if images:
        yield images


def actor_resources(settings: Settings, nodes: Iterable[Mapping[str, float]]) -> Resources:
    """Choose an actor's resources from those of each node (`CPU`, `GPU`).

    A GPU, if the setting `device` allows it and a node can hold such an actor; `cpu_threads`
    CPUs, or all there are per actor on the smallest node that it fits on. Raises `BulkError` if it
    fits on none: Ray would wait for such a node.
    """
    available = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    least = settings.cpu_threads or 1
    has_gpu = any(cpus >= least and gpus for cpus, gpus in available)
    wants_gpu = int(settings.device.startswith("cuda") or (settings.device == "auto" and has_gpu))
    fitting = [(cpus, gpus) for cpus, gpus in available if cpus >= least and gpus >= wants_gpu]
    if not fitting:
        cpus, gpus = max(
            available, key=lambda node: (min(node[1], wants_gpu), node), default=(0, 0)
        )
        raise BulkError(
            f"no node of the cluster can hold an actor, which needs {least} CPU and {wants_gpu}"
            f" GPU: the largest has {cpus} CPU and {gpus} GPU"
        )
    per_actor = [cpus // gpus if wants_gpu else cpus for cpus, gpus in fitting]
    return Resources(settings.cpu_threads or min(filter(None, per_actor), default=1), wants_gpu)


def limit_settings(resources: Resources, settings: Settings) -> Settings:
    """Limit a classifier's settings to its actor's resources.

    Ray shows an actor only its own GPU, whatever that GPU's number on the node.
    """
    return settings.model_copy(
        update={
            "cpu_threads": resources.cpus,
            "decode_threads": settings.decode_threads or resources.cpus,
            "device": settings.device.partition(":")[0] if resources.gpus else "cpu",
        }
    )


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    """Join a cluster, or start one on this machine; Ray's messages go to standard error."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with redirect_stdout(sys.stderr):
        try:
            quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
            ray.init(address, include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BulkError(f"cannot join the Ray cluster: {error}") from error
        try:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it
            yield
        finally:
            ray.shutdown()


def _ray() -> Any:
    """Import Ray, without usage reports, and with nothing but errors on the terminal."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        data = importlib.import_module("ray.data")
    except ImportError as error:
        raise BulkError("--engine ray needs Ray: pip install 'googlenet-service[ray]'") from error
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # Ray's own; others may be the application's
            handler.setLevel(logging.ERROR)
    return importlib.import_module("ray")


def _table(files: Sequence[str]) -> Any:
    """Make a row of files: the name in the results, and the absolute path, of each."""
    paths = [os.fsencode(Path(file).absolute()) for file in files]
    return ray_actor.table(file=[paths], name=[[*map(archives.printable, files)]])
