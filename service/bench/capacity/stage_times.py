"""Measure how long each stage of a replica takes here: alone, and while the others are busy.

The backend is called as the service calls it, in turns, so that other load on the machine affects
all stages; a figure is the median of its turns.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TypeVar

from service.bench import load, scrape
from service.bench.capacity.replica_model import Replica, Rows, Seconds
from service.bench.process import serving
from service.imaging.image_decoder import Bounds
from service.models import store
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Slice
from service.serving.backend import Backend, Payload

T = TypeVar("T")

_TURNS = 3
_PAUSE = 0.02  # seconds; about the gap between requests of a half idle replica
_IMAGES = 4  # decoded one after the other, in a turn
_REQUESTS = 300  # for HTTP: CPU time is counted in hundredths of a second
_WARM_UP = 30  # requests


@dataclass(frozen=True, slots=True)
class Subject:
    """An idle backend, and the images and views to measure it with."""

    backend: Backend
    images: Sequence[bytes]
    views: str
    bounds: Bounds
    decoders: int  # threads

    @property
    def rows(self) -> Rows:
        """The rows of an image, by key."""
        return {spec.key: spec.rows for spec in self.backend.ensemble.jobs(self.views).specs}

    async def prepare(self, image: bytes) -> Sequence[Payload]:
        """Decode an image."""
        return await self.backend.prepare(image, self.views, self.bounds)


@dataclass(frozen=True, slots=True)
class _Turn:
    """The durations of one turn; batches by key and size."""

    decode: Seconds
    batches: Mapping[tuple[Key, int], Seconds]
    slowed: float


async def measure(subject: Subject, http: float, turns: int = _TURNS) -> Replica:
    """Measure a replica; `http` is the event loop's seconds for a request."""
    stages = _Stages(subject, await subject.prepare(subject.images[0]))
    measured = [await stages.turn() for _ in range(turns)]
    first = measured[0]
    batches = {
        bucket: _median(turn.batches[bucket] for turn in measured) for bucket in first.batches
    }
    decode = _median(turn.decode for turn in measured)
    return Replica(
        executors=tuple(executor.device for executor in subject.backend.executors),
        costs=subject.backend.ensemble.costs,
        batches=_by_key(batches),
        slowed=median(turn.slowed for turn in measured),
        decode=decode,
        decoders=subject.decoders,
        http=Seconds(http, http * decode.beside / decode.alone),  # slowed as much as decoding
    )


class _Stages:
    """Times the stages of a backend."""

    def __init__(self, subject: Subject, payloads: Sequence[Payload]) -> None:
        executors = subject.backend.executors
        by_device = {executor.device: executor for executor in executors}
        curves = subject.backend.ensemble.costs.curves
        self._subject = subject
        self._images = itertools.cycle(subject.images)
        self._beside = [*by_device.values()]  # an executor of each device
        self._batches = [
            Batch(key, size, (Slice(payloads[key.member], 0, 1),) * size, "full")
            for key in subject.rows
            for size in curves[key].sizes
        ]

    async def turn(self) -> _Turn:
        decode = mean([await _rested(self._decode()) for _ in range(_IMAGES)])
        batches = {(batch.key, batch.size): await self._seconds(batch) for batch in self._batches}
        contended, decode_beside = await self._contended()
        slower = contended / sum(seconds.beside for seconds in batches.values()) - 1
        return _Turn(
            Seconds(decode, decode_beside),
            batches,
            max(0.0, slower) / self._subject.decoders,
        )

    async def _seconds(self, batch: Batch[Payload]) -> Seconds:
        alone = await _rested(self._beside[0].run(batch))
        return Seconds(alone, await _timed(self._everywhere(batch)))

    async def _everywhere(self, batch: Batch[Payload]) -> None:
        await asyncio.gather(*(executor.run(batch) for executor in self._beside))

    async def _contended(self) -> tuple[float, float]:
        """Run every batch while all threads decode: seconds of all batches and of an image."""
        stop = asyncio.Event()
        decoding = [
            asyncio.create_task(self._decode_until(stop)) for _ in range(self._subject.decoders)
        ]
        seconds = [await _timed(self._everywhere(batch)) for batch in self._batches]
        stop.set()
        spent = await asyncio.gather(*decoding)
        return sum(seconds), mean(itertools.chain(*spent))

    async def _decode(self) -> None:
        await self._subject.prepare(next(self._images))

    async def _decode_until(self, stop: asyncio.Event) -> list[float]:
        spent = []
        while not stop.is_set():
            spent.append(await _timed(self._decode()))
        return spent


async def _rested(work: Awaitable[object]) -> float:
    """Time work after a pause: with cold caches and sleeping processors."""
    await asyncio.sleep(_PAUSE)
    return await _timed(work)


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _median(values: Iterable[Seconds]) -> Seconds:
    alone, beside = zip(*((seconds.alone, seconds.beside) for seconds in values), strict=True)
    return Seconds(median(alone), median(beside))


def _by_key(values: Mapping[tuple[Key, int], T]) -> dict[Key, dict[int, T]]:
    keys = dict.fromkeys(key for key, _ in values)
    return {key: {size: values[k, size] for k, size in values if k == key} for key in keys}


async def http(image: bytes) -> float:
    """Measure the HTTP process's CPU seconds for a request, with a tiny model.

    Requests are sent one after the other.
    """
    small = ("--max-batch=1", "--cpu-threads=1", "--precision=float32", "--views=single")
    quiet = "--log-level=error"
    async with serving([f"--model={store.BUNDLED}", *small, quiet]) as started:
        client = started.client
        requests = [client.target.post_form("/classify", image, {})]
        await load.fixed_count(client, requests, _WARM_UP, connections=1)
        before = scrape.processor(await scrape.scrape(client))
        await load.fixed_count(client, requests, _REQUESTS, connections=1)
        return (scrape.processor(await scrape.scrape(client)) - before) / _REQUESTS
