"""The limit of this machine: decoding and inference without a server.

Measured in a separate process, which keeps the models between measurements.
"""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple, Self

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

Decoding = Literal["beside", "within"]
Images = list[Sequence[PreparedImage]]  # of each image, by member


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """Images a second, and the CPU seconds of one."""

    images: float
    cpu_seconds: float


class Limit:
    """A process that measures decoding and inference."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def forwards(self) -> dict[int, float]:
        """Time the network alone: views a second by batch size, with all executors at work."""
        return self._process.submit(_forwards, self._settings).result()

    def rate(self, plan: str, seconds: float) -> Rate:
        """Decode and classify for `seconds`.

        The better of two ways: decoding in threads of its own, and in the executors' threads.
        """
        ways: tuple[Decoding, ...] = ("beside", "within")
        return max(
            self._process.submit(
                _rate, self._settings, self._folder, plan, seconds / len(ways), way
            ).result()
            for way in ways
        )

    def alone(self) -> float:
        """Decode and classify image after image; returns the median of their seconds."""
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

    def seconds(photo: bytes) -> float:
        started = time.perf_counter()
        prepared = loaded.prepare(photo, "single", Bounds(settings.max_pixels))
        for batch in _batches([prepared], 1):
            executor.run(batch)
        return time.perf_counter() - started

    photos = itertools.islice(itertools.cycle(_photos(folder)), _LONE)
    return statistics.median([seconds(photo) for photo in photos])


def _rate(settings: Settings, folder: Path, plan: str, seconds: float, decoding: Decoding) -> Rate:
    loaded = _loaded(settings)
    plans = loaded.ensemble.plans(plan)
    size = loaded.ensemble.costs.largest(Key(0, plans[0].side))
    count = math.lcm(size, len(plans[0].views)) // len(
        plans[0].views
    )  # images that fill whole batches
    turn = itertools.cycle(_photos(folder))

    def prepare() -> Images:
        photos = [next(turn) for _ in range(count)]
        return [loaded.prepare(photo, plan, Bounds(settings.max_pixels)) for photo in photos]

    executors = loaded.executors
    end = time.perf_counter() + seconds

    def work(executor: DeviceExecutor, take: Callable[[], Images]) -> list[_Mark]:
        """Return the ends of the executor's rounds."""
        ends: list[_Mark] = []
        while len(ends) < 2 or ends[-1].moment < end:  # noqa: PLR2004 - a first and a last
            for batch in _batches(take(), size):
                executor.run(batch)
            ends.append(_Mark(time.perf_counter(), time.process_time()))
        return ends

    with (
        ThreadPoolExecutor(cpu_info.available()) as decoders,
        ThreadPoolExecutor(len(executors)) as computing,
    ):
        take = _ahead(decoders, prepare, 2 * len(executors)) if decoding == "beside" else prepare
        rounds = [*computing.map(work, executors, itertools.repeat(take))]
    return _rate_between(rounds, count)


class _Mark(NamedTuple):
    """The end of a round: when, and the CPU seconds of the process by then."""

    moment: float
    cpu_seconds: float


def _rate_between(rounds: Sequence[Sequence[_Mark]], count: int) -> Rate:
    """Return the rate of all executors, each from the end of its first round to that of its last.

    What was decoded ahead before the first is made up for by what is left after the last.
    """
    begun = min(ends[0].cpu_seconds for ends in rounds)
    used = max(ends[-1].cpu_seconds for ends in rounds) - begun
    return Rate(
        sum(count * (len(ends) - 1) / (ends[-1].moment - ends[0].moment) for ends in rounds),
        used / (count * sum(len(ends) - 1 for ends in rounds)),
    )


def _ahead(
    decoders: ThreadPoolExecutor, prepare: Callable[[], Images], rounds: int
) -> Callable[[], Images]:
    """Prefetch `rounds` rounds of images."""
    pending = deque(decoders.submit(prepare) for _ in range(rounds))

    def take() -> Images:
        pending.append(decoders.submit(prepare))
        return pending.popleft().result()

    return take


def _batches(images: Images, size: int) -> Iterator[Batch[PreparedImage]]:
    """Batch all views of the images, member by member."""
    for member, prepared in enumerate(zip(*images, strict=True)):
        rows = [Slice(p, view, view + 1) for p in prepared for view in range(len(p.plan.views))]
        for first in range(0, len(rows), size):
            part = tuple(rows[first : first + size])
            yield Batch(Key(member, prepared[0].plan.side), size, part, "full")
