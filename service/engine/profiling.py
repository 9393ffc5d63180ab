"""What batches cost on the executors, by running some, and warming up with them."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from service.engine.executor import DeviceExecutor, Model
from service.engine.prepared_image import PreparedImage
from service.errors import OutOfMemory
from service.imaging.crops import CROP, Canvas, Plan, Resize, View
from service.scheduling.cost_model import Buckets, Key, LinearCost
from service.scheduling.types import Batch, Slice

logger = logging.getLogger(__name__)

_LONG = 0.1  # seconds; what else a machine does is little beside it


def keys(models: Sequence[Model]) -> list[Key]:
    """List what the batches of an ensemble may be of."""
    found = [Key(member, side) for member, model in enumerate(models) for side in model.sides]
    maps = [key._replace(maps=True) for key in found if models[key.member].explains]
    return found + maps


def measure_line(executor: DeviceExecutor, key: Key, largest: int) -> LinearCost:
    """Time some batch sizes of a key, of up to so many rows, and fit a line through them.

    Maps are made one at a time.
    """
    if key.maps:
        return LinearCost.fit({1: _seconds([executor], key, 1)}, 1)
    sizes = _shown(key, largest)
    measured = dict(_timed([executor], key, sizes))
    return LinearCost.fit(measured, largest if len(measured) == len(sizes) else max(measured))


def _shown(key: Key, largest: int) -> Sequence[int]:
    """Choose the batch sizes to time; for the larger views, which few ask for, fewer."""
    sizes = LinearCost(0.0, 0.0, largest).sizes
    return sizes if key.side == CROP else sizes[:2]


def measure_buckets(executors: Sequence[DeviceExecutor], key: Key, sizes: Sequence[int]) -> Buckets:
    """Time every size of a key with all devices at work, as it is under load."""
    return Buckets(dict(_timed(executors, key, [1] if key.maps else sizes)))


def warm_up(executor: DeviceExecutor, key: Key, line: LinearCost) -> None:
    """Run the batches that are timed the first time, for what a library sets up with them."""
    for size in _shown(key, line.largest):
        executor.run(blank(key, size))


def _timed(
    executors: Sequence[DeviceExecutor], key: Key, sizes: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Time sizes until there is no memory; raises `OutOfMemory` if there is none for the first."""
    for size in sizes:
        try:
            yield size, _seconds(executors, key, size)
        except OutOfMemory:
            if size == sizes[0]:
                raise
            logger.warning("no memory for %d views of %d pixels at once", size, key.side)
            return


def _seconds(executors: Sequence[DeviceExecutor], key: Key, size: int) -> float:
    """Time a batch on all devices at once, one executor of each at a time; the slowest counts."""
    batch = blank(key, size)
    by_device = defaultdict(list)
    for executor in executors:
        by_device[executor.device].append(executor)
    return max(_together(turn, batch) for turn in zip(*by_device.values(), strict=True))


def _together(executors: Sequence[DeviceExecutor], batch: Batch[PreparedImage]) -> float:
    if len(executors) == 1:
        return measure(partial(executors[0].run, batch))
    with ThreadPoolExecutor(len(executors)) as threads:
        return measure(lambda: list(threads.map(lambda one: one.run(batch), executors)))


def measure(run: Callable[[], object], *, repeats: int = 2) -> float:
    """Warm up with one run, then give the seconds of the quickest of `repeats` more.

    The quickest, since a device takes the same time for the same work and everything else
    that a run meets only adds; that is little to a run of `_LONG` seconds, and one is enough.
    Costs are kept up to date while serving.
    """
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < _LONG:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def blank(key: Key, size: int) -> Batch[PreparedImage]:
    """Make a batch of black views."""
    pixels = np.zeros((key.side, key.side, 3), np.uint8)
    canvas = Canvas(Resize("warp", key.side), key.side)
    plan = Plan((canvas,), (View(0, 0, 0, key.side),))
    return Batch(key, size, (Slice(PreparedImage(plan, (pixels,)), 0, 1),) * size, "full")
