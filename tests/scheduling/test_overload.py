"""Far more work than can be done: what is accepted is done in time, large and small jobs alike."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from calls import Call, ready
from conftest import FakeBackend, fake_backend, mean_colour
from fastapi import FastAPI
from known import colours

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch
from service.server.app import create_app
from service.settings import Settings

ROW = 0.0025  # seconds
SECONDS = 2.0  # that a request may take
ROWS = {"single": 1, "ten": 10, "paper": 144}
MIX = {"single": 50, "ten": 35, "paper": 15}  # of a hundred requests
MEAN = sum(ROWS[views] * share for views, share in MIX.items()) / 100
IMAGE = colours(1)[0]


def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
    """Take as long as a device that does nothing else."""
    time.sleep(ROW * batch.size)
    return mean_colour(batch)


@asynccontextmanager
async def serving(backend: FakeBackend) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(timeout_seconds=SECONDS), load=lambda *_: backend)
    async with app.router.lifespan_context(app):
        await ready(app)
        yield app


async def flood(app: FastAPI, factor: float, seconds: float) -> list[Call]:
    """Send at random moments, `factor` times as much work as can be done."""
    chance = random.Random(0)
    calls, end = [], time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        at = time.monotonic()
        while at < end:
            call = Call(IMAGE, *chance.choices([*MIX], [*MIX.values()]))
            calls.append(call)
            tasks.create_task(call.make(app))
            at += chance.expovariate(factor / (ROW * MEAN))
            await asyncio.sleep(max(0.0, at - time.monotonic()))
    return calls


@pytest.mark.slow
async def test_ten_times_the_work_is_refused_or_done_in_time_whether_large_or_small() -> None:
    async with serving(fake_backend(run, seconds_per_row=ROW)) as app:
        calls = await flood(app, factor=10, seconds=6 * SECONDS)
        # No request is left, so the next one has the device for itself.
        after = Call(IMAGE, "paper")
        await after.make(app)
        assert after.status == 200
    by_views: dict[str, Counter[int]] = defaultdict(Counter)
    for call in calls:
        by_views[call.views][call.status] += 1
    statuses = sum(by_views.values(), Counter[int]())
    assert {*statuses} <= {200, 503, 504}, statuses
    # Some are late where others use the machine, too; without admission, nearly all are.
    assert statuses[503] > statuses[200] > 2 * statuses[504], statuses
    work = {views: ROWS[views] * by_views[views][200] for views in ROWS}
    total = sum(work.values())
    assert total * ROW > 0.3 * 6 * SECONDS, by_views
    assert 0.1 < work["paper"] / total < 0.9, by_views  # neither keeps the other out


@pytest.mark.slow
async def test_a_client_that_retries_at_its_retry_time_is_admitted() -> None:
    """Three times what can be done at once, all at the same moment: they come one by one."""

    async def ask(app: FastAPI) -> int:
        tries = 0
        while True:
            call = Call(IMAGE, "ten")
            await call.make(app)
            tries += 1
            if call.status == 200:
                return tries
            # Now and then the machine is slower than it was when the request was admitted.
            await asyncio.sleep(call.retry_after if call.status == 503 else 0)

    async with serving(fake_backend(run, seconds_per_row=ROW)) as app:
        many = int(3 * SECONDS / (ROW * ROWS["ten"]))
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(ask(app)) for _ in range(many)]
        tries = Counter(task.result() for task in asking)
    assert tries[1] < many / 2  # or no request was refused
    # Twice where the machine is as quick as when the retry times were given.
    assert tries.total() == many
    assert sum(number * count for number, count in tries.items()) < 3 * many, tries
