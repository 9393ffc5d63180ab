"""Views that are looked at as far as an image needs them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import fake_backend
from test_classifier import (
    LIMITS,
    RED,
    Device,
    Recording,
    best,
    classify,
    nothing_is_held,
    png,
    serving,
    serving_busy,
)

from service.engine.prepared_image import PreparedImage
from service.errors import ClientDisconnected, DeadlineExceeded
from service.models.ensemble import ByView, Result
from service.scheduling.types import Batch
from service.serving.adaptive_views import ViewsLately
from service.serving.types import Answer

GREY = png("grey")  # of which every label is as probable
ORANGE = png("orange")  # red leads by a quarter


def views(device: Device, member: int = 0) -> list[int]:
    """The views that the device computed, in order."""
    slices = (part for b in device.batches if b.key.member == member for part in b.slices)
    return [view for part in slices for view in range(part.start, part.stop)]


def recording(device: Device, **options: int) -> Recording:
    backend = fake_backend(device.run, **options)
    return Recording(backend.ensemble, backend.executors)


async def test_a_sure_image_is_looked_at_once() -> None:
    device = Device()
    async with serving(device=device) as served:
        (answer,) = await classify(served, RED, plan="adaptive")
        assert isinstance(answer, Answer)
        assert (answer.predictions[0].label, answer.view_count) == ("red", 1)
        assert views(device) == [0]
        nothing_is_held(served)


async def test_an_unsure_image_is_decoded_once_and_looked_at_in_stages() -> None:
    device = Device()
    backend = recording(device)
    async with serving(backend) as served:
        adaptive, ten = [
            (await classify(served, GREY, plan=plan))[0] for plan in ("adaptive", "ten")
        ]
        assert isinstance(adaptive, Answer)
        assert isinstance(ten, Answer)
        assert adaptive.view_count == ten.view_count == 10
        assert adaptive.probabilities == pytest.approx(ten.probabilities)
        assert views(device) == [*range(10)] * 2
        assert [views for views, _ in backend.decoded] == ["adaptive", "ten"]
        nothing_is_held(served)


def surer_with_every_view(batch: Batch[PreparedImage]) -> list[ByView]:
    """Answer the first view with a lead of 0, all others with one of 1."""
    return [
        np.float32([[1, 0, 0] if view else [0.5, 0.5, 0] for view in range(part.start, part.stop)])
        for part in batch.slices
    ]


async def test_looking_ends_with_the_stage_whose_mean_is_sure() -> None:
    async with serving(fake_backend(surer_with_every_view)) as served:
        (answer,) = await classify(served, RED, plan="adaptive")
        assert isinstance(answer, Answer)
        assert answer.view_count == 2  # with a lead of a half
        assert answer.probabilities == pytest.approx([0.75, 0.25, 0])


async def test_a_model_may_have_a_lead_of_its_own() -> None:
    backend = fake_backend(surer_with_every_view)
    (member,) = backend.ensemble.members
    backend.ensemble = replace(backend.ensemble, members=(replace(member, lead=0.8),))
    async with serving(backend) as served:
        (answer,) = await classify(served, RED, plan="adaptive")
        assert isinstance(answer, Answer)
        assert answer.view_count == 6  # after two views it leads by a half


async def test_members_count_as_views() -> None:
    """Each is looked at as far as the mean over members needs."""
    device = Device()
    async with serving(recording(device, members=2)) as served:
        (answer,) = await classify(served, ORANGE, plan="adaptive")
        assert isinstance(answer, Answer)
        assert answer.view_count == 10
        assert views(device, 0) == views(device, 1) == [*range(10)]
        nothing_is_held(served)


async def test_views_of_paper_that_agree_stop_first_and_a_tie_never_does() -> None:
    device = Device()
    async with serving(device=device) as served:
        answers = await classify(served, ORANGE, GREY, plan="adaptive:paper")
        assert [one.view_count for one in answers if isinstance(one, Answer)] == [4, 144]
        jobs = served.ensemble.jobs("adaptive:paper")
        assert [len(stage) for stage in jobs.plans[0].stages] == [4, 4, 8, 16, 32, 80]
        nothing_is_held(served)


def alternating(batch: Batch[PreparedImage]) -> list[ByView]:
    """Answer every fourth view of the first member for the second label."""
    rows = np.float32([[1, 0, 0], [0, 1, 0]])
    return [
        rows[[int(view % 4 == 3) * (not batch.key.member) for view in range(part.start, part.stop)]]
        for part in batch.slices
    ]


@pytest.mark.parametrize(("members", "views"), [(1, 32), (3, 4)])
async def test_views_of_paper_are_looked_at_until_they_agree_enough(
    members: int, views: int
) -> None:
    """Alone it leads by 1/2 with an error of (3 / 4 / (n - 1)) ** 0.5, else by 5/6 with a third."""
    async with serving(fake_backend(alternating, members=members)) as served:
        (answer,) = await classify(served, RED, plan="adaptive:paper")
        assert isinstance(answer, Answer)
        assert answer.view_count == views


async def test_admission_expects_for_each_plan_what_its_images_took() -> None:
    async with serving() as served:
        for _ in range(100):
            await classify(served, RED, plan="adaptive:paper")
        await classify(served, RED, plan="adaptive")
        lately = served.classifier._lately  # noqa: SLF001 - what admission goes by
        assert lately["adaptive:paper"].share < 0.1
        assert lately["adaptive"].share > 0.3


async def test_sure_and_unsure_images_of_a_request_are_answered_side_by_side() -> None:
    async with serving() as served:
        answers = await classify(served, RED, b"text", GREY, RED, plan="adaptive")
        assert best(answers) == ["red", "UnsupportedType", "red", "red"]
        counts = [answer.view_count for answer in answers if isinstance(answer, Answer)]
        assert counts == [1, 10, 1]
        nothing_is_held(served)


async def test_admission_expects_what_images_lately_took() -> None:
    async with serving() as served:
        jobs = served.ensemble.jobs("adaptive")
        lately = ViewsLately()
        assert [spec.rows for spec in lately.specs(jobs)] == [1, 3]
        for _ in range(300):
            lately = lately.observed(1)
        assert [spec.rows for spec in lately.specs(jobs)] == [1, 9]
        for _ in range(300):
            lately = lately.observed(0.1)
        assert [spec.rows for spec in lately.specs(jobs)] == [1, 1]
        assert lately.specs(served.ensemble.jobs("ten")) == served.ensemble.specs(
            served.ensemble.plans("ten")
        )


async def test_queued_images_count_with_their_expected_rows_until_they_are_looked_at() -> None:
    async with serving_busy() as (served, device):
        waiting = asyncio.create_task(classify(served, RED, GREY, plan="adaptive"))
        while served.backlog().rows < 8:  # noqa: ASYNC110 - until both are reserved
            await asyncio.sleep(0)
        assert served.backlog().rows == 8
        device.go.set()
        assert best(await waiting) == ["red", "red"]


async def test_a_client_that_leaves_between_stages_leaves_nothing_behind() -> None:
    device = Device()
    second = asyncio.Event()
    loop = asyncio.get_running_loop()

    def run(batch: Batch[PreparedImage]) -> Sequence[Result]:
        if device.batches:
            device.blocked = True
            loop.call_soon_threadsafe(second.set)
        return device.run(batch)

    async with serving(fake_backend(run), device=device) as served:
        with pytest.raises(ClientDisconnected):
            await classify(served, GREY, plan="adaptive", gone=second.wait)
        assert served.backlog().rows == 0
        device.blocked = False
        device.go.set()
        assert best(await classify(served, RED)) == ["red"]
        nothing_is_held(served)


async def test_a_deadline_holds_for_all_stages() -> None:
    device = Device(blocked=True)
    async with serving(device=device) as served:
        (error,) = await classify(served, GREY, plan="adaptive", seconds=0.2)
        assert isinstance(error, DeadlineExceeded)
        assert served.backlog().rows == 0


async def test_a_cached_answer_tells_how_many_views_were_looked_at() -> None:
    async with serving(limits=replace(LIMITS, cache_bytes=10**6)) as served:
        computed, cached = [(await classify(served, GREY, plan="adaptive"))[0] for _ in range(2)]
        assert isinstance(computed, Answer)
        assert isinstance(cached, Answer)
        assert cached.cached
        assert cached.view_count == computed.view_count == 10
