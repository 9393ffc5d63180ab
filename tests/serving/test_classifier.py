"""One image in, one ranking out: loading, responses, refusals, failures and cancellation."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import pytest
from conftest import FakeBackend, fake_backend, mean_colour
from PIL import Image

from service.engine.prepared_image import PreparedImage
from service.errors import (
    LOADING_RETRY,
    ClientDisconnected,
    DeadlineExceeded,
    InferenceFailed,
    Interrupted,
    ModelError,
    NotReady,
    Overloaded,
    ServiceError,
    TooLarge,
)
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Probabilities
from service.scheduling.admission import Decoders
from service.scheduling.batcher import STOPPING
from service.scheduling.types import Backlog, Batch, DropReport, RestartReport
from service.serving.backend import Backend
from service.serving.disconnects import never
from service.serving.restart_policy import MAX_ENDS, Restarts
from service.serving.served_model import RESTARTING, ServedModel
from service.serving.types import Answer, Limits

LIMITS = Limits(image=Bounds(100_000), max_queue_bytes=10**9, stall_seconds=60)
PATIENCE = 30.0  # seconds, for what happens at once


def png(colour: str, side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


RED, GREEN, BLUE = png("red"), png("lime"), png("blue")


@dataclass
class Device:
    """A fake device that records its batches, and may be blocked or fail."""

    blocked: bool = False
    fails_member: int | None = None
    blocks_member: int | None = None
    batches: list[Batch[PreparedImage]] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def run(self, batch: Batch[PreparedImage]) -> list[Probabilities]:
        """Record the batch, wait if blocked, and answer by colour."""
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
        """Wait until it runs a batch that is blocked."""
        assert await asyncio.to_thread(self.started.wait, PATIENCE)


def served_model(
    load: Callable[[Future[None]], Backend],
    *,
    limits: Limits = LIMITS,
    report: Callable[[object], None] = lambda _: None,
) -> ServedModel:
    return ServedModel(load, limits, report)


@asynccontextmanager
async def serving(
    backend: Backend | None = None,
    *,
    limits: Limits = LIMITS,
    report: Callable[[object], None] = lambda _: None,
    device: Device | None = None,
) -> AsyncIterator[ServedModel]:
    """A classifier that has loaded; a device that is blocked is let go in the end."""
    if backend is None:
        backend = fake_backend(device.run if device else mean_colour)
    try:
        async with served_model(lambda _: backend, limits=limits, report=report) as served:
            await served.ready()
            yield served
    finally:
        if device:
            device.go.set()


@asynccontextmanager
async def serving_busy(
    *,
    seconds_per_row: float = 0.001,
    limits: Limits = LIMITS,
    report: Callable[[object], None] = lambda _: None,
) -> AsyncIterator[tuple[ServedModel, Device]]:
    """A classifier whose device runs an image's batch until the test ends; then nothing is held."""
    device = Device(blocked=True)
    backend = fake_backend(device.run, seconds_per_row=seconds_per_row)
    async with serving(backend, limits=limits, report=report, device=device) as served:
        running = asyncio.create_task(classify(served, RED))
        await device.is_busy()
        yield served, device
        device.go.set()
        assert best(await running) == ["red"]
        nothing_is_held(served)


async def classify(
    served: ServedModel,
    *images: bytes,
    plan: str = "single",
    top_k: int = 3,
    seconds: float = PATIENCE,
    gone: Callable[[], Awaitable[None]] = never,
) -> list[Answer | ServiceError]:
    return await served.classifier.classify(
        images, plan=plan, top_k=top_k, seconds=seconds, gone=gone
    )


def best(answers: Sequence[Answer | ServiceError]) -> list[str]:
    """The most probable label of each answer, or the name of its error."""
    return [
        answer.predictions[0].label if isinstance(answer, Answer) else type(answer).__name__
        for answer in answers
    ]


def nothing_is_held(served: ServedModel, *, running: int = 0) -> None:
    """All reservations are released but those of images in the running batch."""
    nbytes = served.ensemble.specs(served.ensemble.plans("single"))[0].nbytes
    backlog = served.backlog()
    assert (backlog.rows, backlog.nbytes) == (0, running * nbytes)


async def all_are_decoded(served: ServedModel) -> None:
    """A sole decoder takes images in order: when this one is refused, the others are queued."""
    for _ in range(2):
        await asyncio.sleep(0)  # a task that was just made begins, and then those of its images
    assert best(await classify(served, b"text")) == ["UnsupportedType"]


# Loading.


@dataclass
class Loading:
    """A load that waits until it may end."""

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


async def test_requests_are_refused_with_the_reason_while_the_model_loads() -> None:
    load = Loading()
    async with served_model(load) as served:
        with pytest.raises(NotReady, match="being loaded, warmed and timed") as refused:
            await classify(served, RED)
        assert refused.value.retry_after == LOADING_RETRY
        assert served.not_loaded_reason == "the model is being loaded, warmed and timed"
        assert served.failure_reason is None  # loading is no failure
        assert served.backlog() == Backlog()
        for attribute in ("classifier", "ensemble"):
            with pytest.raises(NotReady):
                getattr(served, attribute)
        load.go.set()
        await served.ready()
        assert served.not_loaded_reason is served.failure_reason is None
        assert served.ensemble.name == "fake0"
        assert best(await classify(served, RED)) == ["red"]


@pytest.mark.parametrize(
    "error", [ModelError("the weights are damaged"), RuntimeError("a bug in the loader")]
)
async def test_every_request_for_a_model_that_failed_to_load_is_refused(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    load = Loading(error)
    load.go.set()
    async with served_model(load) as served:
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                await served.ready()
        assert served.not_loaded_reason == "the model could not be loaded; the log says why"
        assert served.failure_reason == served.not_loaded_reason
        with pytest.raises(NotReady, match="could not be loaded"):
            await classify(served, RED)
    assert str(error) in caplog.text


async def test_leaving_does_not_wait_for_a_load_whose_backend_is_closed_later() -> None:
    load = Loading()
    await load.is_left()
    load.go.set()
    assert load.backend.closed.wait(PATIENCE)


def test_a_load_that_fails_after_the_stop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = {*threading.enumerate()}
    load = Loading(ModelError("too late"))
    asyncio.run(load.is_left())
    loading = {*threading.enumerate()} - before
    load.go.set()
    for thread in loading:
        thread.join(PATIENCE)
    assert caplog.records == []


# Responses.


async def test_an_image_gets_its_top_k_labels_most_probable_first() -> None:
    async with serving() as served:
        (answer,) = await classify(served, png("#806020"))
        assert isinstance(answer, Answer)
        labels = [prediction.label for prediction in answer.predictions]
        assert labels == ["red", "green", "blue"]
        assert [p.probability for p in answer.predictions] == pytest.approx([0.5, 0.375, 0.125])
        timing = answer.timing
        assert min(timing.decode, timing.queue, timing.inference) >= 0
        (shorter,) = await classify(served, png("#806020"), top_k=1)
        assert isinstance(shorter, Answer)
        assert shorter.predictions == answer.predictions[:1]
        nothing_is_held(served)


@pytest.mark.parametrize("plan", ["single", "ten", "paper", "dense"])
async def test_several_images_are_answered_in_their_order(plan: str) -> None:
    async with serving() as served:
        answers = await classify(served, BLUE, RED, GREEN, RED, plan=plan)
        assert best(answers) == ["blue", "red", "green", "red"]
        nothing_is_held(served)


async def test_each_bad_image_has_its_own_error_and_affects_no_other() -> None:
    device = Device()
    async with serving(device=device) as served:
        bad = await classify(served, b"text", GREEN[:60], png("blue", 400))
        assert best(bad) == ["UnsupportedType", "UnreadableImage", "TooLarge"]
        assert all(map(str, bad))
        assert not device.batches
        mixed = await classify(served, RED, b"text", GREEN)
        assert best(mixed) == ["red", "UnsupportedType", "green"]
        nothing_is_held(served)


async def test_a_bad_image_releases_its_reservation_before_the_others_are_done() -> None:
    async with serving_busy() as (served, device):
        mixed = asyncio.create_task(classify(served, GREEN, b"text"))
        await all_are_decoded(served)
        assert served.backlog().rows == 1
        device.go.set()
        assert best(await mixed) == ["green", "UnsupportedType"]


@dataclass
class Recording(FakeBackend):
    """A backend that records what it decodes: for which views, and how long it may take."""

    decoded: list[tuple[str, float]] = field(default_factory=list)

    async def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> Sequence[PreparedImage]:
        """Record it."""
        self.decoded.append((views, bounds.seconds))
        return await super().prepare(image, views, bounds, target, features=features)


@pytest.mark.parametrize(("seconds", "longest"), [(2.0, 2.0), (30.0, 10.0)])
async def test_an_image_is_not_decoded_for_longer_than_its_request_has(
    seconds: float, longest: float
) -> None:
    fake = fake_backend()
    backend = Recording(fake.ensemble, fake.executors)
    limits = Limits(Bounds(100_000, seconds=10.0), 10**9, stall_seconds=60.0)
    async with serving(backend, limits=limits) as served:
        await classify(served, RED, seconds=seconds)
    ((_, limit),) = backend.decoded
    assert longest - 1 < limit <= longest


# Refusals.

LITTLE_MEMORY = Limits(Bounds(100_000), max_queue_bytes=200_000, stall_seconds=60)


@pytest.mark.parametrize(
    ("plan", "seconds", "error", "message"),
    [
        ("ten", 5.0, DeadlineExceeded, "when nothing else runs"),
        ("paper", 1000.0, TooLarge, "200000"),
    ],
)
async def test_a_request_that_an_idle_service_could_not_serve_is_refused_at_once(
    plan: str, seconds: float, error: type[ServiceError], message: str
) -> None:
    backend = fake_backend(seconds_per_row=1.0)
    async with serving(backend, limits=LITTLE_MEMORY) as served:
        with pytest.raises(error, match=message):
            await classify(served, RED, plan=plan, seconds=seconds)
        nothing_is_held(served)


async def test_a_request_without_memory_beside_the_others_is_refused_at_once() -> None:
    async with serving_busy(limits=LITTLE_MEMORY) as (served, _):
        with pytest.raises(Overloaded, match="200000"):
            await classify(served, RED)


async def test_a_request_without_time_behind_the_others_is_refused_with_a_retry_time() -> None:
    async with serving_busy(seconds_per_row=1.0) as (served, device):
        second = asyncio.create_task(classify(served, RED, plan="ten"))
        await all_are_decoded(served)
        with pytest.raises(Overloaded) as refused:
            await classify(served, RED, seconds=5.0)
        assert refused.value.retry_after > 0
        device.go.set()
        assert best(await second) == ["red"]


async def test_admission_can_be_checked_before_the_upload() -> None:
    async with serving_busy(seconds_per_row=1.0) as (served, _):
        with pytest.raises(DeadlineExceeded):
            served.classifier.admit(plan="ten", seconds=9.0)
        with pytest.raises(Overloaded):
            served.classifier.admit(plan="ten", seconds=11.0)
        served.classifier.admit(plan="single", seconds=PATIENCE)
        nothing_is_held(served, running=1)


async def test_each_image_that_is_not_done_by_the_deadline_has_an_error_and_costs_no_batch() -> (
    None
):
    async with serving_busy() as (served, device):
        late = await classify(served, RED, b"text", GREEN, seconds=0.3)
        assert best(late) == ["DeadlineExceeded", "UnsupportedType", "DeadlineExceeded"]
        nothing_is_held(served, running=1)
    assert len(device.batches) == 1


async def test_images_that_wait_for_a_decoder_are_part_of_the_backlog() -> None:
    backend = fake_backend()
    async with serving(backend) as served:
        backend.decoders, backend.undecoded = Decoders(1, seconds=2.0), 4
        assert served.backlog().seconds == 6


# Clients that disconnect.


@pytest.mark.parametrize("cancelled", [False, True])
async def test_rows_of_a_disconnected_client_are_not_run(*, cancelled: bool) -> None:
    """Whether its disconnection is noticed or its task is cancelled."""
    disconnected = asyncio.Event()
    reports: list[object] = []

    async def gone() -> None:
        await disconnected.wait()

    async with serving_busy(report=reports.append) as (served, device):
        request = asyncio.create_task(classify(served, RED, GREEN, plan="ten", gone=gone))
        await all_are_decoded(served)
        assert served.backlog().rows == 20
        _ = request.cancel() if cancelled else disconnected.set()
        with pytest.raises(asyncio.CancelledError if cancelled else ClientDisconnected):
            await request
        nothing_is_held(served, running=1)
    assert len(device.batches) == 1
    assert reports[:2] == [DropReport("cancelled", "queue")] * 2


async def test_a_client_that_has_disconnected_already_costs_nothing() -> None:
    async def gone() -> None:
        return

    device = Device()
    async with serving(device=device) as served:
        with pytest.raises(ClientDisconnected, match="disconnected"):
            await classify(served, RED, plan="ten", gone=gone)
        nothing_is_held(served)
        assert best(await classify(served, RED)) == ["red"]
    assert len(device.batches) == 1


async def test_the_disconnect_watch_ends_with_the_response() -> None:
    ended = asyncio.Event()

    async def gone() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving() as served:
        assert best(await classify(served, RED, gone=gone)) == ["red"]
        await ended.wait()


async def test_cancelling_a_request_in_a_batch_releases_its_reservation() -> None:
    device = Device(blocked=True)
    async with serving(device=device) as served:
        request = asyncio.create_task(classify(served, RED))
        await device.is_busy()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        nothing_is_held(served)
        device.go.set()
        assert best(await classify(served, GREEN)) == ["green"]


# Stopping.


async def test_stopping_fails_requests_that_are_queued_or_run_and_closes_the_backend() -> None:
    device = Device(blocked=True)
    backend = fake_backend(device.run)
    async with serving(backend, device=device) as served:
        running = asyncio.create_task(classify(served, RED))
        await device.is_busy()
        queued = asyncio.create_task(classify(served, GREEN, BLUE))
        await all_are_decoded(served)
        assert not backend.closed.is_set()
    answers = [*await running, *await queued]
    assert [str(answer) for answer in answers] == [STOPPING] * 3
    assert all(isinstance(answer, Interrupted) for answer in answers)
    assert len(device.batches) == 1
    assert backend.closed.is_set()
    assert served.not_loaded_reason is not None
    with pytest.raises(NotReady):
        _ = served.classifier


class Slow(bytes):
    """An image whose decoding lasts until `go` is set."""

    started: threading.Event
    go: threading.Event

    def startswith(self, *prefix: object) -> bool:
        """Keep the decoder waiting where it looks at the first bytes."""
        self.started.set()
        assert self.go.wait(PATIENCE)
        return super().startswith(*prefix)


async def test_stopping_fails_images_that_are_decoded_or_wait_for_that() -> None:
    image = Slow(RED)
    image.started, image.go = threading.Event(), threading.Event()
    async with serving() as served:
        request = asyncio.create_task(classify(served, image, RED))
        assert await asyncio.to_thread(image.started.wait, PATIENCE)
    image.go.set()
    async with asyncio.timeout(PATIENCE / 2):
        assert best(await request) == ["Interrupted"] * 2


# Ensembles, and devices that fail.


async def test_the_members_of_an_ensemble_share_a_decoded_image() -> None:
    device = Device()
    async with serving(fake_backend(device.run, members=2)) as served:
        assert best(await classify(served, RED, GREEN)) == ["red", "green"]
        nothing_is_held(served)
    slices = [part for batch in device.batches for part in batch.slices]
    assert {batch.key.member for batch in device.batches} == {0, 1}
    assert len({id(part.payload) for part in slices}) == 2  # as many as images


async def test_an_error_in_one_member_ends_the_wait_for_the_other() -> None:
    device = Device(blocks_member=0, fails_member=1)
    backend = fake_backend(device.run, members=2, executors=2)
    async with serving(backend, device=device) as served:
        (answer,) = await classify(served, RED)
        assert isinstance(answer, InferenceFailed)
        assert not device.go.is_set()  # the other member still runs
        nothing_is_held(served)


async def test_a_device_that_fails_three_times_in_a_row_is_a_failure_until_it_succeeds() -> None:
    device = Device(fails_member=0)
    async with serving(device=device) as served:
        for number in range(1, 5):
            assert best(await classify(served, RED)) == ["InferenceFailed"]
            nothing_is_held(served)
            reason = f"the device failed on the last {number} batches" if number > 2 else None
            assert served.failure_reason == reason
        device.fails_member = None
        assert best(await classify(served, RED)) == ["red"]
        assert served.failure_reason is None


@pytest.mark.parametrize(
    ("stall_seconds", "reason"), [(0.0, "the device has not answered for 0 s"), (60.0, None)]
)
async def test_a_batch_that_runs_for_too_long_is_a_failure_until_it_ends(
    stall_seconds: float, reason: str | None
) -> None:
    async with serving_busy(limits=Limits(Bounds(100_000), 10**9, stall_seconds)) as (served, _):
        assert served.failure_reason == reason
    async with serving(limits=Limits(Bounds(100_000), 10**9, stall_seconds)) as served:
        assert served.failure_reason is None


# Workers that end.


def restarting(
    reports: list[object], gave_up: Callable[[], None] = lambda: None
) -> tuple[ServedModel, list[FakeBackend]]:
    """A served model whose worker is restarted at once, and the list of its workers so far."""
    workers: list[FakeBackend] = []

    def load(_: object) -> FakeBackend:
        workers.append(fake_backend())
        return workers[-1]

    at_once = Restarts(first_delay=0.0)
    return ServedModel(load, LIMITS, reports.append, gave_up, at_once), workers


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


async def test_a_worker_that_ended_is_restarted() -> None:
    reports: list[object] = []
    served_model, workers = restarting(reports)
    async with served_model as served:
        await served.ready()
        for count in (1, 2):
            workers[-1].die()
            await until(lambda: served.not_loaded_reason is not None)
            assert served.not_loaded_reason == RESTARTING
            assert served.failure_reason is None  # so that no liveness probe ends this process
            with pytest.raises(NotReady):
                _ = served.classifier
            await until(lambda: served.not_loaded_reason is None)
            assert len(workers) == 1 + count
            assert workers[count - 1].closed.is_set()
            assert best(await classify(served, RED)) == ["red"]
    restarts = [report for report in reports if isinstance(report, RestartReport)]
    assert [report.serves for report in restarts] == [False, True, False, True]


async def test_requests_to_a_worker_that_ends_may_be_sent_again() -> None:
    device = Device(blocked=True)
    backend = fake_backend(device.run)
    async with serving(backend, device=device) as served:
        request = asyncio.create_task(classify(served, RED))
        await device.is_busy()
        backend.die()
        (answer,) = await request
    assert isinstance(answer, Interrupted)
    assert answer.retry_after > 0


async def test_a_worker_that_ends_too_often_is_not_restarted() -> None:
    gave_up = asyncio.Event()
    served_model, workers = restarting([], gave_up.set)
    async with served_model as served:
        await served.ready()
        for count in range(1, MAX_ENDS + 1):
            await until(
                lambda count=count: len(workers) == count and served.not_loaded_reason is None
            )
            workers[-1].die()
        async with asyncio.timeout(10):
            await gave_up.wait()
        assert len(workers) == MAX_ENDS
        assert served.failure_reason == "the model could not be loaded; the log says why"


class Ended(FakeBackend):
    """A backend that has ended."""

    async def prepare(self, *_: object, **__: object) -> NoReturn:
        """Refuse."""
        raise InferenceFailed("it has ended")


async def test_every_request_to_a_backend_that_cannot_decode_fails() -> None:
    fake = fake_backend()
    async with serving(Ended(fake.ensemble, fake.executors)) as served:
        answers = await classify(served, RED, GREEN)
        assert [str(answer) for answer in answers] == ["it has ended"] * 2
        nothing_is_held(served)
