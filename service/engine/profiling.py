"""Measurement of batch costs on the executors, which also warms them up."""

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

_LONG = 0.1  # seconds; other load is small relative to such a run


def keys(models: Sequence[Model]) -> list[Key]:
    """List the batch keys of an ensemble."""
    plain = [Key(member, side) for member, model in enumerate(models) for side in model.sides]
    maps = [key._replace(maps=True) for key in plain if models[key.member].explains]
    return plain + maps


def measure_line(executor: DeviceExecutor, key: Key, largest: int) -> LinearCost:
    """Measure some batch sizes of a key, up to `largest` rows, and fit a line.

    Maps are computed one at a time.
    """
    if key.maps:
        return LinearCost.fit({1: _seconds([executor], key, 1)}, 1)
    sizes = _sampled(key, largest)
    measured = dict(_timed([executor], key, sizes))
    return LinearCost.fit(measured, largest if len(measured) == len(sizes) else max(measured))


def _sampled(key: Key, largest: int) -> Sequence[int]:
    """Choose the batch sizes to measure; fewer for the larger views, which are rare."""
    sizes = LinearCost(0.0, 0.0, largest).sizes
    return sizes if key.side == CROP else sizes[:2]


def measure_buckets(executors: Sequence[DeviceExecutor], key: Key, sizes: Sequence[int]) -> Buckets:
    """Measure every batch size of a key with all devices busy, as under load."""
    return Buckets(dict(_timed(executors, key, [1] if key.maps else sizes)))


def warm_up(executor: DeviceExecutor, key: Key, line: LinearCost) -> None:
    """Run the batches that are timed the first time, for what a library sets up with them."""
    for size in _sampled(key, line.largest):
        executor.run(blank(key, size))


def _timed(
    executors: Sequence[DeviceExecutor], key: Key, sizes: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Measure sizes until memory runs out; raises `OutOfMemory` if it does for the first."""
    for size in sizes:
        try:
            yield size, _seconds(executors, key, size)
        except OutOfMemory:
            if size == sizes[0]:
                raise
            logger.warning("out of memory for a batch of %d views of %d pixels", size, key.side)
            return


def _seconds(executors: Sequence[DeviceExecutor], key: Key, size: int) -> float:
    """Measure a batch on all devices at once, one executor of each; the slowest counts."""
    batch = blank(key, size)
    by_device = defaultdict(list)
    for executor in executors:
        by_device[executor.device].append(executor)
    return max(_together(turn, batch) for turn in zip(*by_device.values(), strict=True))


def _together(executors: Sequence[DeviceExecutor], batch: Batch[PreparedImage]) -> float:
    if len(executors) == 1:
        return measure(partial(executors[0].run, batch))
    with ThreadPoolExecutor(len(executors)) as threads:
        return measure(lambda: list(threads.map(lambda executor: executor.run(batch), executors)))


def measure(run: Callable[[], object], *, repeats: int = 2) -> float:
    """Warm up with one run, then return the seconds of the fastest of `repeats` more.

    The fastest, since other load on the machine only adds time; that is little to a run of `_LONG`
    seconds, so one is enough. Costs are updated while serving.
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
