"""What this machine could do if there were no server: decode and forward, and nothing else.

Measured in a process of its own, which keeps the models between measurements.
"""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Self

from service import cpu_info
from service.bench.photos import read
from service.engine import engine, profiling
from service.engine.engine import Engine
from service.engine.executor import DeviceExecutor
from service.engine.prepared_image import PreparedImage
from service.imaging.crops import CROP
from service.imaging.image_decoder import Bounds
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Slice
from service.settings import Settings

_LONE = 40  # images, one after the other

Where = Literal["beside", "within"]
Images = list[Sequence[PreparedImage]]  # what each of some images brings, by member


class Limit:
    """A process that decodes and computes when it is asked to."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def forwards(self) -> dict[int, float]:
        """Time the network alone: views a second by batch size, with all lanes at work."""
        return self._process.submit(_forwards, self._settings).result()

    def rate(self, plan: str, seconds: float) -> float:
        """Decode and rank for so long; gives images a second.

        The better of two ways: decoding in threads beside the lanes, and in the lanes' own.
        """
        ways: tuple[Where, ...] = ("beside", "within")
        return max(
            self._process.submit(
                _rate, self._settings, self._folder, plan, seconds / len(ways), way
            ).result()
            for way in ways
        )

    def alone(self) -> float:
        """Decode and rank one image after the other; gives the median of their seconds."""
        return self._process.submit(_alone, self._settings, self._folder).result()


@cache
def _loaded(settings: Settings) -> Engine:
    return engine.load(settings)


@cache
def _photos(folder: Path) -> list[bytes]:
    return read(folder)


def _forwards(settings: Settings) -> dict[int, float]:
    loaded = _loaded(settings)
    key = Key(0, CROP)
    sizes = loaded.ensemble.costs.curves[key].sizes
    measured = profiling.measure_buckets(loaded.executors, key, sizes)
    devices = len({executor.device for executor in loaded.executors})
    return {size: devices * size / measured.seconds(size) for size in measured.sizes}


def _alone(settings: Settings, folder: Path) -> float:
    loaded = _loaded(settings)
    executor = loaded.executors[0]

    def one(photo: bytes) -> float:
        started = time.perf_counter()
        cuts = loaded.prepare(photo, "single", Bounds(settings.max_pixels))
        for batch in _batches([cuts], 1):
            executor.run(batch)
        return time.perf_counter() - started

    photos = itertools.islice(itertools.cycle(_photos(folder)), _LONE)
    return statistics.median([one(photo) for photo in photos])


def _rate(settings: Settings, folder: Path, plan: str, seconds: float, where: Where) -> float:
    loaded = _loaded(settings)
    plans = loaded.ensemble.plans(plan)
    size = loaded.ensemble.costs.largest(Key(0, plans[0].side))
    together = math.lcm(size, len(plans[0].views)) // len(plans[0].views)  # fill whole batches
    turn = itertools.cycle(_photos(folder))

    def prepare() -> Images:
        photos = [next(turn) for _ in range(together)]
        return [loaded.prepare(photo, plan, Bounds(settings.max_pixels)) for photo in photos]

    workers = loaded.executors
    end = time.perf_counter() + seconds

    def work(executor: DeviceExecutor, take: Callable[[], Images]) -> float:
        """Give the lane's own rate, from the end of its first round to that of its last."""
        ends: list[float] = []
        while len(ends) < 2 or ends[-1] < end:  # noqa: PLR2004 - a first and a last
            for batch in _batches(take(), size):
                executor.run(batch)
            ends.append(time.perf_counter())
        return together * (len(ends) - 1) / (ends[-1] - ends[0])

    with (
        ThreadPoolExecutor(cpu_info.available()) as decoders,
        ThreadPoolExecutor(len(workers)) as computing,
    ):
        take = _ahead(decoders, prepare, 2 * len(workers)) if where == "beside" else prepare
        return sum(computing.map(work, workers, itertools.repeat(take)))


def _ahead(
    decoders: ThreadPoolExecutor, prepare: Callable[[], Images], rounds: int
) -> Callable[[], Images]:
    """Keep so many rounds of images in preparation."""
    pending = deque(decoders.submit(prepare) for _ in range(rounds))

    def take() -> Images:
        pending.append(decoders.submit(prepare))
        return pending.popleft().result()

    return take


def _batches(images: Images, size: int) -> Iterator[Batch[PreparedImage]]:
    """Put all views of some images into batches, member by member."""
    for number, cuts in enumerate(zip(*images, strict=True)):
        rows = [Slice(cut, at, at + 1) for cut in cuts for at in range(len(cut.plan.views))]
        for first in range(0, len(rows), size):
            part = tuple(rows[first : first + size])
            yield Batch(Key(number, cuts[0].plan.side), size, part, "full")
