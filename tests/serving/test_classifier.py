"""One image in, one ranking out: loading, answers, refusals, and every way to leave early."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import pytest
from conftest import FakeBackend, fake_backend, mean_colour
from PIL import Image

from service.engine.prepared_image import PreparedImage, prepare
from service.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    InferenceFailed,
    ModelError,
    NotReady,
    Overloaded,
    ServiceError,
    TooLarge,
    UnreadableImage,
    UnsupportedType,
)
from service.imaging import crops
from service.imaging.crops import Resize
from service.imaging.image_decoder import Bounds
from service.models.ensemble import Probabilities
from service.scheduling.admission import Decoders
from service.scheduling.types import Backlog, Batch, BatchReport, DropReport, RestartReport
from service.serving.backend import Backend
from service.serving.restart_policy import MAX_ENDS, Restarts
from service.serving.served_model import LOADING_RETRY, RESTARTING, ServedModel
from service.serving.types import Answer, Limits

LIMITS = Limits(image=Bounds(100_000), max_queue_bytes=10**9, stall_seconds=60)
PATIENCE = 30.0  # seconds, for what happens at once
NOTHING = Backlog()


def png(colour: str, side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


RED, GREEN, BLUE = png("red"), png("lime"), png("blue")


@dataclass
class Device:
    """A fake device that notes its batches, and may be held up or fail."""

    blocked: bool = False
    fails_member: int | None = None
    blocks_member: int | None = None
    batches: list[Batch[PreparedImage]] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def run(self, batch: Batch[PreparedImage]) -> list[Probabilities]:
        """Note the batch, wait if held up, and answer by colour."""
        self.batches.append(batch)
        member = batch.key.member
        if member == self.fails_member:
            message = "the device is on fire"
            raise RuntimeError(message)
        if self.blocked or member == self.blocks_member:
            self.started.set()
            assert self.go.wait(PATIENCE)
        return mean_colour(batch)

    async def is_busy(self) -> None:
        """Wait until it runs a batch that it holds up."""
        assert await asyncio.to_thread(self.started.wait, PATIENCE)


def served_model(
    load: Callable[[object], Backend] = lambda *_: fake_backend(),
    *,
    limits: Limits = LIMITS,
    report: Callable[[BatchReport | DropReport], None] = lambda _: None,
) -> ServedModel:
    return ServedModel(load, limits, report)


@asynccontextmanager
async def serving(
    backend: Backend | None = None,
    *,
    limits: Limits = LIMITS,
    report: Callable[[BatchReport | DropReport], None] = lambda _: None,
    device: Device | None = None,
) -> AsyncIterator[ServedModel]:
    """A classifier that has loaded; a device that is held up is let go in the end."""
    if backend is None:
        backend = fake_backend(device.run if device else mean_colour)
    try:
        async with served_model(lambda _: backend, limits=limits, report=report) as entered:
            await entered.ready()
            yield entered
    finally:
        if device:
            device.go.set()


async def ask(
    served: ServedModel, *images: bytes, plan: str = "single", seconds: float = PATIENCE
) -> list[Answer | ServiceError]:
    return await served.classifier.classify(images, plan=plan, top_k=3, seconds=seconds)


def best(answers: Sequence[Answer | ServiceError]) -> list[str]:
    """The most probable label of each answer, or what is wrong with it."""
    return [
        answer.predictions[0].label if isinstance(answer, Answer) else type(answer).__name__
        for answer in answers
    ]


def nothing_is_held(served: ServedModel, *, running: int = 0) -> None:
    """All reservations are released but those of images in the running batch."""
    one = served.ensemble.specs(served.ensemble.plans("single"))[0].nbytes
    backlog = served.backlog()
    assert (backlog.rows, backlog.nbytes) == (0, running * one)


async def all_are_decoded(served: ServedModel) -> None:
    """A sole decoder takes images in order: when this one is refused, the others are queued."""
    await asyncio.sleep(0)  # a task that was just made begins
    assert best(await ask(served, b"text")) == ["UnsupportedType"]


# Loading.


def test_while_the_model_loads_images_are_refused_with_the_reason() -> None:
    async def main() -> None:
        loaded = threading.Event()

        def load(_: object) -> Backend:
            assert loaded.wait(PATIENCE)
            return fake_backend()

        async with served_model(load) as served:
            with pytest.raises(NotReady, match="being loaded, warmed and timed") as refused:
                await ask(served, RED)
            assert refused.value.retry_after == LOADING_RETRY
            assert served.not_loaded_reason == "the model is being loaded, warmed and timed"
            assert served.failure_reason is None  # to load is no standstill
            assert served.backlog() == NOTHING
            with pytest.raises(NotReady):
                _ = served.ensemble
            loaded.set()
            await served.ready()
            assert served.not_loaded_reason is served.failure_reason is None
            assert served.ensemble.name == "fake0"
            assert best(await ask(served, RED)) == ["red"]

    asyncio.run(main())


def test_every_request_for_a_model_that_failed_to_load_is_refused() -> None:
    def load(_: object) -> Backend:
        message = "the weights are damaged"
        raise ModelError(message)

    async def main() -> None:
        async with served_model(load) as served:
            for _ in range(2):
                with pytest.raises(ModelError, match="the weights are damaged"):
                    await served.ready()
            assert served.not_loaded_reason == "the model could not be loaded; the log says why"
            assert served.failure_reason == served.not_loaded_reason
            with pytest.raises(NotReady, match="could not be loaded"):
                await ask(served, RED)

    asyncio.run(main())


def test_a_load_that_fails_by_a_bug_is_no_service_either(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> Backend:
        raise RuntimeError("out of memory")

    async def scene() -> None:
        async with served_model(broken) as served:
            with pytest.raises(RuntimeError, match="out of memory"):
                await served.ready()
            assert served.not_loaded_reason == "the model could not be loaded; the log says why"

    asyncio.run(scene())
    assert "out of memory" in caplog.text


@dataclass
class Loading:
    """A load that waits until it may end, and who waits until it has begun."""

    error: Exception | None = None
    backend: FakeBackend = field(default_factory=fake_backend)
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, cancelled: Future[None]) -> Backend:
        """Load, when it may."""
        self.cancelled = cancelled
        self.begun.set()
        assert self.go.wait(PATIENCE)
        if self.error:
            raise self.error
        return self.backend

    async def is_left(self) -> None:
        """Enter a classifier and leave it before it has loaded, without a wait for that."""
        async with asyncio.timeout(PATIENCE / 2):
            async with served_model(self) as served:
                assert await asyncio.to_thread(self.begun.wait, PATIENCE)
        assert served.not_loaded_reason is not None
        assert not self.backend.closed.is_set()
        assert self.cancelled.done()


def test_leaving_while_the_model_loads_does_not_wait_for_it() -> None:
    load = Loading()
    asyncio.run(load.is_left())
    load.go.set()


def test_what_has_loaded_after_leaving_is_closed() -> None:
    load = Loading()
    asyncio.run(load.is_left())
    load.go.set()
    assert load.backend.closed.wait(PATIENCE)  # nobody else has it


def test_a_load_that_fails_after_the_stop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = {*threading.enumerate()}
    load = Loading(ModelError("too late"))
    asyncio.run(load.is_left())
    loading = {*threading.enumerate()} - before
    load.go.set()
    for thread in loading:
        thread.join(PATIENCE)
    assert caplog.records == []


# Answers.


def test_a_image_gets_its_labels_most_probable_first() -> None:
    async def main() -> None:
        async with serving() as served:
            (answer,) = await ask(served, png("#806020"))
            assert isinstance(answer, Answer)
            labels = [prediction.label for prediction in answer.predictions]
            assert labels == ["red", "green", "blue"]
            assert [p.probability for p in answer.predictions] == pytest.approx([0.5, 0.375, 0.125])
            timing = answer.timing
            assert min(timing.decode, timing.queue, timing.inference) >= 0
            nothing_is_held(served)

    asyncio.run(main())


def test_no_more_than_top_k_labels_are_returned() -> None:
    async def main() -> None:
        async with serving() as served:
            (answer,) = await served.classifier.classify(
                [RED], plan="single", top_k=1, seconds=PATIENCE
            )
            assert isinstance(answer, Answer)
            assert [prediction.label for prediction in answer.predictions] == ["red"]

    asyncio.run(main())


@pytest.mark.parametrize("plan", ["single", "ten", "paper", "dense"])
def test_several_images_are_answered_in_their_order(plan: str) -> None:
    async def main() -> None:
        async with serving() as served:
            answers = await ask(served, BLUE, RED, GREEN, RED, plan=plan)
            assert best(answers) == ["blue", "red", "green", "red"]
            nothing_is_held(served)

    asyncio.run(main())


def test_a_bad_image_has_its_own_error_and_harms_no_other() -> None:
    async def main() -> None:
        async with serving() as served:
            answers = await ask(served, RED, b"text", GREEN[:60], png("blue", 400), GREEN)
            kinds = ["red", "UnsupportedType", "UnreadableImage", "TooLarge", "green"]
            assert best(answers) == kinds
            for answer, kind in zip(
                answers[1:4], (UnsupportedType, UnreadableImage, TooLarge), strict=True
            ):
                assert isinstance(answer, kind)
                assert str(answer)
            nothing_is_held(served)

    asyncio.run(main())


def test_a_large_photo_is_decoded_at_no_more_than_the_views_need() -> None:
    """The forwards see what they saw; only the decoder had less to do."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(file, "JPEG")
    plan = crops.plan("single", Resize("warp", 256))
    [cuts] = prepare(file.getvalue(), [plan], Bounds(10**8))
    [whole] = crops.canvases(Image.open(file), plan)
    assert cuts.plan == plan
    assert np.abs(cuts.canvases[0].astype(np.int16) - whole).mean() < 0.5
    [paper, _] = prepare(
        file.getvalue(), [crops.plan("paper", Resize("warp", 256)), plan], Bounds(10**8)
    )
    exactly = crops.canvases(Image.open(file), paper.plan)
    assert all(np.array_equal(*pair) for pair in zip(paper.canvases, exactly, strict=True))


@dataclass
class Timed(FakeBackend):
    """A backend that notes how long decoding may take."""

    given: list[float] = field(default_factory=list)

    async def prepare(self, image: bytes, views: str, bounds: Bounds) -> Sequence[PreparedImage]:
        """Note it."""
        self.given.append(bounds.seconds)
        return await super().prepare(image, views, bounds)


@pytest.mark.parametrize(("seconds", "longest"), [(2.0, 2.0), (30.0, 10.0)])
def test_a_image_is_not_decoded_for_longer_than_its_request_has(
    seconds: float, longest: float
) -> None:
    async def main() -> None:
        plain = fake_backend()
        backend = Timed(plain.ensemble, plain.executors)
        limits = Limits(Bounds(100_000, seconds=10.0), 10**9, stall_seconds=60.0)
        async with serving(backend, limits=limits) as served:
            await ask(served, RED, seconds=seconds)
        (given,) = backend.given
        assert longest - 1 < given <= longest

    asyncio.run(main())


def test_a_bad_image_costs_no_forward() -> None:
    async def main() -> None:
        device = Device()
        async with serving(device=device) as served:
            assert best(await ask(served, b"text")) == ["UnsupportedType"]
            nothing_is_held(served)
        assert not device.batches

    asyncio.run(main())


def test_a_bad_image_releases_its_reservation_before_the_others_are_done() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            asking = asyncio.create_task(ask(served, RED, b"text"))
            await device.is_busy()
            await all_are_decoded(served)
            nothing_is_held(served, running=1)
            device.go.set()
            assert best(await asking) == ["red", "UnsupportedType"]
            nothing_is_held(served)

    asyncio.run(main())


def test_batches_are_reported() -> None:
    async def main() -> None:
        reports: list[BatchReport | DropReport] = []
        async with serving(report=reports.append) as served:
            await ask(served, RED, plan="ten")
        assert all(isinstance(report, BatchReport) for report in reports)
        assert sum(report.rows for report in reports if isinstance(report, BatchReport)) == 10

    asyncio.run(main())


# Refusals.


def test_what_could_never_be_done_in_time_is_refused_at_once() -> None:
    async def main() -> None:
        device = Device()
        async with serving(fake_backend(device.run, seconds_per_row=1.0)) as served:
            with pytest.raises(DeadlineExceeded, match="when nothing else runs"):
                await ask(served, RED, plan="ten", seconds=5.0)
            nothing_is_held(served)
        assert not device.batches

    asyncio.run(main())


def test_what_does_not_fit_in_memory_beside_the_others_is_refused_at_once() -> None:
    async def main() -> None:
        limits = Limits(Bounds(100_000), max_queue_bytes=200_000, stall_seconds=60)
        device = Device(blocked=True)
        async with serving(device=device, limits=limits) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            with pytest.raises(Overloaded, match="200000"):
                await ask(served, RED)
            device.go.set()
            assert best(await first) == ["red"]
            assert best(await ask(served, GREEN)) == ["green"]
            nothing_is_held(served)

    asyncio.run(main())


def test_what_could_never_fit_in_memory_is_too_large() -> None:
    async def main() -> None:
        limits = Limits(Bounds(100_000), max_queue_bytes=200_000, stall_seconds=60)
        async with serving(limits=limits) as served:
            with pytest.raises(TooLarge, match="200000"):
                await ask(served, RED, plan="paper")
            nothing_is_held(served)

    asyncio.run(main())


def test_what_cannot_be_done_in_time_behind_the_others_is_refused_at_once() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(fake_backend(device.run, seconds_per_row=1.0), device=device) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            second = asyncio.create_task(ask(served, RED, plan="ten"))
            await all_are_decoded(served)
            with pytest.raises(Overloaded) as refused:
                await ask(served, RED, seconds=5.0)
            assert refused.value.retry_after > 0
            device.go.set()
            assert best([*await first, *await second]) == ["red", "red"]
            nothing_is_held(served)

    asyncio.run(main())


# Deadlines.


def test_admission_can_be_checked_before_the_upload() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        backend = fake_backend(device.run, seconds_per_row=1.0)
        async with serving(backend, device=device) as served:
            served.classifier.admit(plan="ten", seconds=11.0)
            with pytest.raises(DeadlineExceeded):
                served.classifier.admit(plan="ten", seconds=9.0)
            nothing_is_held(served)
            first = asyncio.create_task(ask(served, RED, plan="ten"))
            await device.is_busy()
            with pytest.raises(Overloaded):
                served.classifier.admit(plan="ten", seconds=11.0)
            served.classifier.admit(plan="single", seconds=PATIENCE)
            device.go.set()
            assert best(await first) == ["red"]

    asyncio.run(main())


def test_while_the_model_loads_any_image_would_be_refused() -> None:
    async def main() -> None:
        loaded = threading.Event()

        def load(_: object) -> Backend:
            assert loaded.wait(PATIENCE)
            return fake_backend()

        async with served_model(load) as served:
            with pytest.raises(NotReady):
                served.classifier.admit(plan="single", seconds=PATIENCE)
            loaded.set()
            await served.ready()
            served.classifier.admit(plan="single", seconds=PATIENCE)

    asyncio.run(main())


def test_each_image_that_is_not_done_by_the_deadline_says_so() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            late = await ask(served, RED, b"text", GREEN, seconds=0.3)
            kinds = ["DeadlineExceeded", "UnsupportedType", "DeadlineExceeded"]
            assert best(late) == kinds
            nothing_is_held(served, running=1)
            device.go.set()
            assert best(await first) == ["red"]
            nothing_is_held(served)
        assert len(device.batches) == 1  # the late ones cost no forward

    asyncio.run(main())


# Callers that leave.


def test_images_that_wait_for_a_decoder_are_a_part_of_the_backlog() -> None:
    async def main() -> None:
        backend = fake_backend()
        async with serving(backend) as served:
            backend.decoders, backend.undecoded = Decoders(1, seconds=2.0), 4
            assert served.backlog().seconds == 6

    asyncio.run(main())


def test_rows_of_a_disconnected_client_are_not_run() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        hung_up = asyncio.Event()
        reports: list[BatchReport | DropReport] = []

        async def gone() -> None:
            await hung_up.wait()

        async with serving(device=device, report=reports.append) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            second = asyncio.create_task(
                served.classifier.classify(
                    [RED, GREEN], plan="ten", top_k=1, seconds=PATIENCE, gone=gone
                )
            )
            await all_are_decoded(served)
            assert served.backlog().rows == 20
            hung_up.set()
            with pytest.raises(ClientDisconnected, match="disconnected"):
                await second
            nothing_is_held(served, running=1)
            device.go.set()
            assert best(await first) == ["red"]
        assert len(device.batches) == 1
        assert reports[:2] == [DropReport("cancelled", "queue")] * 2

    asyncio.run(main())


def test_a_client_that_is_gone_already_costs_nothing() -> None:
    async def main() -> None:
        async def gone() -> None:
            return

        device = Device()
        async with serving(device=device) as served:
            with pytest.raises(ClientDisconnected):
                await served.classifier.classify(
                    [RED], plan="ten", top_k=1, seconds=PATIENCE, gone=gone
                )
            nothing_is_held(served)
            assert best(await ask(served, RED)) == ["red"]
        assert len(device.batches) == 1

    asyncio.run(main())


def test_the_disconnect_watch_ends_with_the_response() -> None:
    async def main() -> None:
        left: list[str] = []

        async def gone() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append("watching")

        async with serving() as served:
            answers = await served.classifier.classify(
                [RED], plan="single", top_k=1, seconds=PATIENCE, gone=gone
            )
            assert best(answers) == ["red"]
            await asyncio.sleep(0)  # it was cancelled
            assert left == ["watching"]

    asyncio.run(main())


def test_cancelling_a_request_removes_its_rows() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            second = asyncio.create_task(ask(served, RED, GREEN, plan="ten"))
            await all_are_decoded(served)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            nothing_is_held(served, running=1)
            device.go.set()
            assert best(await first) == ["red"]
        assert len(device.batches) == 1

    asyncio.run(main())


def test_cancelling_a_request_in_a_batch_releases_its_reservation() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            first = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            nothing_is_held(served)
            device.go.set()
            assert best(await ask(served, GREEN)) == ["green"]

    asyncio.run(main())


# Leaving.


def test_leaving_tells_those_whose_work_is_queued_or_runs() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            running = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            waiting = asyncio.create_task(ask(served, GREEN, BLUE))
            await all_are_decoded(served)
        answers = [*await running, *await waiting]
        assert [str(answer) for answer in answers] == ["the service is stopping"] * 3
        assert all(isinstance(answer, InferenceFailed) for answer in answers)
        assert len(device.batches) == 1

    asyncio.run(main())


class Slow(bytes):
    """An image that a decoder is at until `go` is set."""

    started: threading.Event
    go: threading.Event

    def startswith(self, *prefix: object) -> bool:
        """Keep the decoder waiting where it looks at the first bytes."""
        self.started.set()
        assert self.go.wait(PATIENCE)
        return super().startswith(*prefix)


def slow() -> Slow:
    image = Slow(RED)
    image.started, image.go = threading.Event(), threading.Event()
    return image


def test_leaving_while_a_image_is_decoded_answers_and_does_not_hang() -> None:
    """Both the image that a decoder is at and the one that waits for that decoder."""

    async def main() -> None:
        image = slow()
        async with serving() as served:
            asking = asyncio.create_task(ask(served, image, RED))
            assert await asyncio.to_thread(image.started.wait, PATIENCE)
        image.go.set()
        async with asyncio.timeout(PATIENCE / 2):
            answers = await asking
        assert best(answers) == ["InferenceFailed"] * 2

    asyncio.run(main())


def test_after_leaving_nothing_is_served() -> None:
    async def main() -> None:
        async with serving() as served:
            assert served.failure_reason is None
        assert served.not_loaded_reason is not None
        with pytest.raises(NotReady):
            _ = served.classifier

    asyncio.run(main())


def test_leaving_closes_the_backend() -> None:
    async def main() -> None:
        backend = fake_backend()
        async with serving(backend):
            assert not backend.closed.is_set()
        assert backend.closed.is_set()

    asyncio.run(main())


# Ensembles, and devices that fail.


def test_the_members_of_an_ensemble_share_a_decoded_image() -> None:
    async def main() -> None:
        device = Device()
        async with serving(fake_backend(device.run, members=2)) as served:
            assert best(await ask(served, RED, GREEN)) == ["red", "green"]
            nothing_is_held(served)
        slices = [part for batch in device.batches for part in batch.slices]
        assert {batch.key.member for batch in device.batches} == {0, 1}
        assert len({id(part.payload) for part in slices}) == 2  # one an image

    asyncio.run(main())


def test_an_ensembles_answer_is_the_mean_of_its_members() -> None:
    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        """The first member is sure of red, the second of blue, but less so."""
        row = ([1.0, 0.0, 0.0], [0.0, 0.2, 0.8])[batch.key.member]
        return [np.array(row) * part.rows for part in batch.slices]

    async def main() -> None:
        async with serving(fake_backend(run, members=2)) as served:
            (answer,) = await ask(served, RED, plan="ten")
            assert isinstance(answer, Answer)
            ranking = [(p.label, round(p.probability, 6)) for p in answer.predictions]
            assert ranking == [("red", 0.5), ("blue", 0.4), ("green", 0.1)]

    asyncio.run(main())


def test_an_error_in_one_member_ends_the_wait_for_the_other() -> None:
    async def main() -> None:
        device = Device(blocks_member=0, fails_member=1)
        backend = fake_backend(device.run, members=2, executors=2)
        async with serving(backend, device=device) as served:
            (answer,) = await ask(served, RED)
            assert isinstance(answer, InferenceFailed)
            assert not device.go.is_set()  # the other member is still at it
            nothing_is_held(served)

    asyncio.run(main())


def test_a_device_that_fails_fails_its_batch_and_serves_the_next() -> None:
    async def main() -> None:
        device = Device(fails_member=0)
        async with serving(device=device) as served:
            assert best(await ask(served, RED)) == ["InferenceFailed"]
            nothing_is_held(served)
            device.fails_member = None
            assert best(await ask(served, RED)) == ["red"]
            assert served.failure_reason is None

    asyncio.run(main())


def test_a_device_that_fails_again_and_again_is_a_standstill_until_it_does_not() -> None:
    async def main() -> None:
        device = Device(fails_member=0)
        async with serving(device=device) as served:
            for number in range(1, 5):
                assert best(await ask(served, RED)) == ["InferenceFailed"]
                told = f"the device failed on the last {number} batches" if number > 2 else None
                assert served.failure_reason == told
            device.fails_member = None
            assert best(await ask(served, RED)) == ["red"]
            assert served.failure_reason is None

    asyncio.run(main())


AT_ONCE = Restarts(first_delay=0.0)


def loads_again(
    reports: list[object], gave_up: Callable[[], None] = lambda: None
) -> tuple[ServedModel, list[FakeBackend]]:
    """A servable whose worker is replaced at once when it ends; and all its workers so far."""
    made: list[FakeBackend] = []

    def load(_: object) -> FakeBackend:
        made.append(fake_backend())
        return made[-1]

    return ServedModel(load, LIMITS, reports.append, gave_up, AT_ONCE), made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def test_a_worker_that_ended_is_replaced() -> None:
    async def main() -> None:
        reports: list[object] = []
        served_model, made = loads_again(reports)
        async with served_model as served:
            await served.ready()
            for count in (1, 2):
                made[-1].die()
                await until(lambda: served.not_loaded_reason is not None)
                assert served.not_loaded_reason == RESTARTING
                assert served.failure_reason is None  # so that nothing ends this process meanwhile
                with pytest.raises(NotReady):
                    _ = served.classifier
                await until(lambda: served.not_loaded_reason is None)
                assert len(made) == 1 + count
                assert made[count - 1].closed.is_set()
                assert best(await ask(served, RED)) == ["red"]
        assert [one.serves for one in reports if isinstance(one, RestartReport)] == [
            False, True, False, True,
        ]  # fmt: skip

    asyncio.run(main())


def test_requests_to_a_worker_that_ends_fail() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        backend = fake_backend(device.run)
        async with served_model(lambda _: backend) as served:
            await served.ready()
            asked = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            backend.die()
            (answer,) = await asked
            device.go.set()
        assert isinstance(answer, InferenceFailed)

    asyncio.run(main())


def test_a_worker_that_ends_again_and_again_is_given_up() -> None:
    async def main() -> None:
        gave_up = asyncio.Event()
        served_model, made = loads_again([], gave_up.set)
        async with served_model as served:
            await served.ready()
            for count in range(1, MAX_ENDS + 1):
                await until(
                    lambda count=count: len(made) == count and served.not_loaded_reason is None
                )
                made[-1].die()
            async with asyncio.timeout(10):
                await gave_up.wait()
            assert len(made) == MAX_ENDS
            assert served.failure_reason == "the model could not be loaded; the log says why"

    asyncio.run(main())


class Ended(FakeBackend):
    """A backend that has ended, and says so to everyone."""

    async def prepare(self, *_: object) -> NoReturn:
        """Refuse."""
        raise InferenceFailed("it has ended")


def test_every_request_to_a_backend_that_cannot_decode_fails() -> None:
    async def main() -> None:
        whole = fake_backend()
        async with serving(Ended(whole.ensemble, whole.executors)) as served:
            answers = await ask(served, RED, GREEN)
            assert [str(answer) for answer in answers] == ["it has ended"] * 2
            nothing_is_held(served)

    asyncio.run(main())


def test_a_batch_that_runs_for_too_long_is_a_standstill() -> None:
    async def main() -> None:
        limits = Limits(Bounds(100_000), 10**9, stall_seconds=0.0)
        device = Device(blocked=True)
        async with serving(device=device, limits=limits) as served:
            assert served.failure_reason is None
            asking = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            assert served.failure_reason == "the device has not answered for 0 s"
            device.go.set()
            assert best(await asking) == ["red"]
            assert served.failure_reason is None

    asyncio.run(main())


def test_a_batch_that_runs_is_no_standstill_yet() -> None:
    async def main() -> None:
        device = Device(blocked=True)
        async with serving(device=device) as served:
            asking = asyncio.create_task(ask(served, RED))
            await device.is_busy()
            assert served.failure_reason is None
            device.go.set()
            await asking

    asyncio.run(main())
