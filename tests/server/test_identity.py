"""Nobody is answered with another's result: ten thousand at once, leaving and failing."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest
from calls import Call, ready
from conftest import answered, fake_backend, mean_colour
from fake_worker import Threads
from fastapi import FastAPI
from faults import Faulty, Rates
from known import SAME, Known, apart, colours, distance, scores

from service.engine.engine import Engine
from service.engine.executor import DeviceExecutor
from service.engine.prepared_image import PreparedImage, prepare
from service.imaging.image_decoder import Bounds
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch
from service.server.app import create_app
from service.settings import Settings
from service.worker.client import WorkerClient
from service.worker.messages import Loaded

CALLERS = 10_000
IMAGES = 100
BATCH = 0.01  # seconds that each takes, so that strangers share it
LEAVE = 0.2  # of the callers hang up at some moment
RATES = Rates(
    failing=0.02,
    losing=0.02,
    miscounting=0.02,
    out_of_memory=0.2,  # of few: after the first, none is so large any more
    slow=0.02,
    broken_decoder=0.02,
    slow_decoder=0.02,
)
SETTINGS = Settings(
    timeout_seconds=600, max_queue_bytes=4 * 1024**3, max_inflight_body_bytes=2 * 1024**3
)


class ColourEngine:
    """An engine that decodes for real, and computes how red, green and blue an image is."""

    def __init__(self) -> None:
        self.ensemble = fake_backend(sizes=(1, 2, 4, 8, 16, 32, 64)).ensemble
        self.executors = [DeviceExecutor(self._run, number) for number in range(2)]

    def prepare(
        self, image: bytes, views: str, bounds: Bounds, target: int = 0, *, features: bool
    ) -> Sequence[PreparedImage]:
        """Decode an image."""
        assert not features
        return prepare(image, self.ensemble.plans(views), bounds, target)

    @staticmethod
    def _run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        time.sleep(BATCH)
        return mean_colour(batch)


@contextmanager
def engine_apart() -> Iterator[Faulty]:
    """Serve such an engine as the worker does, in threads of this process, with faults."""
    engine = ColourEngine()
    threads = Threads(cast("Engine", engine))
    loaded = Loaded(engine.ensemble, tuple(executor.device for executor in engine.executors))
    try:
        yield Faulty(WorkerClient(threads, loaded, 2), RATES)  # type: ignore[arg-type]  # no process
    finally:
        threads.end()


async def learn(app: FastAPI) -> list[Known]:
    """Ask for one image after the other, alone, until the answers to so many are known."""
    candidates = []
    for image in colours(3 * IMAGES):
        call = Call(image)
        while call.status != 200:  # some fail, here too
            call = Call(image)
            await call.make(app)
        candidates.append(Known(image, scores(call.answer)))
    return apart(candidates, IMAGES)


async def crowd(app: FastAPI, images: Sequence[Known]) -> list[tuple[Known, Call]]:
    """Let all of them ask at once."""
    chance = random.Random(0)
    asked = [(known, Call(known.data)) for known in chance.choices(images, k=CALLERS)]
    async with asyncio.TaskGroup() as tasks:
        for _, call in asked:
            leave = chance.uniform(0, 10) if chance.random() < LEAVE else None
            tasks.create_task(call.make(app, leave=leave))
    return asked


async def counted(app: FastAPI) -> Counter[str]:
    """Read what the metrics have counted."""
    call = Call()
    await call.make(app, "/metrics")
    lines = [line.rsplit(" ", 1) for line in call.answer.decode().splitlines() if line[0] != "#"]
    wanted = ("googlenet_requests_", "googlenet_queue_")
    return Counter({name: int(float(n)) for name, n in lines if name.startswith(wanted)})


@pytest.mark.slow
def test_ten_thousand_at_once_get_their_own_answers_or_none() -> None:
    async def main(faulty: Faulty) -> tuple[list[tuple[Known, Call]], Counter[str]]:
        app = create_app(SETTINGS, load=lambda *_: faulty)
        async with app.router.lifespan_context(app):
            await ready(app)
            images = await learn(app)
            before = await counted(app)
            asked = await crowd(app, images)
            after = await counted(app)
            after.subtract(before)
            return asked, after

    with engine_apart() as faulty:
        asked, counts = asyncio.run(main(faulty))
    statuses = Counter(call.status for _, call in asked)
    # On a slow machine some are refused: they would not be done by their deadlines.
    assert {*statuses} - {503} == {200, 499, 500}, statuses
    assert statuses[200] > CALLERS / 2

    for known, call in asked:
        if call.status == 200:
            assert distance(scores(call.answer), known.scores) < SAME
        else:
            assert json.loads(call.answer)["code"] in {
                "inference_failed",
                "caller_gone",
                "overloaded",
            }
    # What was received is what was answered, failed and left: nobody is lost.
    assert {code: counts[answered(code)] for code in statuses} == statuses
    assert counts["googlenet_requests_in_flight"] == 0
    assert counts["googlenet_queue_rows"] == counts["googlenet_queue_bytes"] == 0
    assert all(faulty.injected[fault] for fault in RATES.__dataclass_fields__), faulty.injected
