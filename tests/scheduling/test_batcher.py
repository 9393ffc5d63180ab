"""The batcher with fake executors: which jobs share a batch, and that each gets its own results."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from conftest import in_event_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import (
    DeadlineExceeded,
    InferenceFailed,
    Interrupted,
    OutOfMemory,
    Overloaded,
    ServiceError,
    TooLarge,
)
from service.scheduling.batcher import Batcher
from service.scheduling.cost_model import Buckets, CostModel, Key
from service.scheduling.types import (
    Backlog,
    Batch,
    BatchReport,
    DropReport,
    Executor,
    JobSpec,
    Outcome,
    Wait,
)

A, B, C = Key(0, 224), Key(0, 256), Key(1, 224)
KEYS = (A, B, C)
BUCKETS = (1, 2, 4, 8)
MINUTE = 60.0  # seconds; time enough for all that is not meant to be late
HANG = 5.0  # seconds until a test that waits in vain fails

Part = tuple[str, int, int]  # a fake result says whose it is: payload, start, stop
Verdict = Callable[[Batch[str]], Sequence[Part]]


def truth(batch: Batch[str]) -> list[Part]:
    return [(part.payload, part.start, part.stop) for part in batch.slices]


def failure(_: Batch[str]) -> list[Part]:
    raise RuntimeError("the device is on fire")


class Device:
    """A fake executor: each batch runs until the test ends it."""

    def __init__(self) -> None:
        self._begun: asyncio.Queue[Batch[str]] = asyncio.Queue()
        self._verdicts: asyncio.Queue[Verdict] = asyncio.Queue()
        self.notify: Callable[[], None] = lambda: None
        self.batch: Batch[str] | None = None  # that runs

    async def run(self, batch: Batch[str]) -> Sequence[Part]:
        """Do as the test says."""
        self.batch = batch
        self._begun.put_nowait(batch)
        self.notify()
        verdict = await self._verdicts.get()
        return verdict(batch)

    async def begun(self) -> Batch[str]:
        """Wait until the next batch is on the device."""
        return await asyncio.wait_for(self._begun.get(), HANG)

    def end(self, verdict: Verdict = truth) -> None:
        """Let the batch that runs end like this."""
        self.batch = None
        self._verdicts.put_nowait(verdict)


@dataclass
class Reports:
    """What the batcher reported."""

    batches: list[BatchReport] = field(default_factory=list)
    drops: list[DropReport] = field(default_factory=list)

    def __call__(self, report: BatchReport | DropReport) -> None:
        """Take a report."""
        (self.batches if isinstance(report, BatchReport) else self.drops).append(report)


async def settle() -> None:
    """Let everything happen that waits for nothing but the loop."""
    for _ in range(10):
        await asyncio.sleep(0)


def table(seconds: float = 0.1) -> dict[Key, dict[int, float]]:
    """Say that a row costs `seconds` and a batch ten times as much, whatever its key.

    That is far more than a fake takes, so what the batcher observes hardly moves its choices.
    """
    return {key: {size: (10 + size) * seconds for size in BUCKETS} for key in KEYS}


def costs_of(tables: Mapping[Key, Mapping[int, float]]) -> CostModel:
    return CostModel({key: Buckets(seconds) for key, seconds in tables.items()})


def batcher_of(
    *devices: Device,
    numbers: Sequence[int] = (),
    costs: CostModel | None = None,
    max_bytes: int = 1_000,
    report: Callable[[BatchReport | DropReport], None] = lambda _: None,
) -> Batcher[str, Part]:
    """Make a batcher with an executor for each device, or for each of these devices' numbers."""
    pairs = zip(devices, numbers or range(len(devices)), strict=True)
    executors = [Executor(device.run, number) for device, number in pairs]
    return Batcher(executors, costs or costs_of(table()), max_bytes=max_bytes, report=report)


async def submit(
    batcher: Batcher[str, Part],
    name: str,
    rows: int = 1,
    key: Key = A,
    *,
    seconds: float = MINUTE,
) -> Outcome[Part]:
    with batcher.reserve([JobSpec(key, rows, 1)], time.monotonic() + seconds) as [reservation]:
        return await batcher.submit(reservation, name)


def submitting(
    batcher: Batcher[str, Part], name: str, rows: int = 1, key: Key = A
) -> asyncio.Task[Outcome[Part]]:
    return asyncio.create_task(submit(batcher, name, rows, key), name=name)


# Batches.


async def test_an_idle_executor_starts_at_once_with_the_queued_rows() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        alice = submitting(batcher, "alice")
        batch = await device.begun()
        assert (batch.key, batch.size, batch.rows) == (A, 1, 1)
        device.end()
        outcome = await alice
        assert outcome.parts == (("alice", 0, 1),)
        assert outcome.batch_rows == 1


async def test_jobs_queued_while_the_executor_is_busy_share_the_next_batch() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        first = submitting(batcher, "first")
        await device.begun()
        others = [submitting(batcher, name) for name in ("b", "c", "d")]
        await settle()
        device.end()
        batch = await device.begun()
        assert truth(batch) == [("b", 0, 1), ("c", 0, 1), ("d", 0, 1)]
        device.end()
        await asyncio.gather(first, *others)
        assert [task.result().batch_rows for task in others] == [3, 3, 3]


async def test_batches_are_formed_by_deadline_not_by_arrival() -> None:
    device = Device()
    async with batcher_of(device, costs=CostModel({A: Buckets({1: 1e-6})})) as batcher:
        tasks = [submitting(batcher, "first")]
        await device.begun()
        for name, seconds in (("patient", 3 * MINUTE), ("urgent", MINUTE)):
            tasks.append(asyncio.create_task(submit(batcher, name, seconds=seconds)))
            await settle()
        device.end()
        assert truth(await device.begun()) == [("urgent", 0, 1)]
        device.end()
        assert truth(await device.begun()) == [("patient", 0, 1)]
        device.end()
        await asyncio.gather(*tasks)


async def test_rows_are_split_over_batches_and_the_parts_come_back_in_the_order_of_rows() -> None:
    device, other = Device(), Device()
    async with batcher_of(device, other) as batcher:
        large = submitting(batcher, "large", rows=18)
        halves = [await device.begun(), await other.begun()]
        assert [truth(half) for half in halves] == [[("large", 0, 8)], [("large", 8, 16)]]
        other.end()  # the later rows are done first
        assert truth(await other.begun()) == [("large", 16, 18)]
        other.end()
        device.end()
        assert (await large).parts == (("large", 0, 8), ("large", 8, 16), ("large", 16, 18))


async def test_a_small_job_overtakes_a_large_job_after_the_running_batch() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        large = submitting(batcher, "large", rows=144)
        await device.begun()
        small = submitting(batcher, "small")
        await settle()
        device.end()
        assert truth(await device.begun()) == [("small", 0, 1), ("large", 8, 15)]
        device.end()
        assert (await small).batch_rows == 8
        large.cancel()
        await device.begun()
        device.end()


async def test_a_busy_device_leaves_rows_to_an_idle_one() -> None:
    """Each has two executors, and the busy one's second executor has waited for longest."""
    device, other = Device(), Device()
    async with batcher_of(device, device, other, other, numbers=(0, 0, 1, 1)) as batcher:
        tasks = [submitting(batcher, "a")]
        await device.begun()
        tasks.append(submitting(batcher, "b"))
        await other.begun()
        tasks.append(submitting(batcher, "c"))  # no device is idle, so a second executor runs it
        third = [asyncio.create_task(each.begun()) for each in (device, other)]
        begun, others = await asyncio.wait(third, return_when=asyncio.FIRST_COMPLETED)
        assert len(begun) == 1
        others.pop().cancel()
        for each in (device, other, device, other):
            each.end()
        await asyncio.gather(*tasks)


async def test_an_outcome_and_its_report_have_the_seconds_of_each_stage() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        began = time.monotonic()
        first = submitting(batcher, "first", rows=3)
        await device.begun()
        device.end()
        outcome = await first
        elapsed = time.monotonic() - began
    assert min(outcome.queue_seconds, outcome.run_seconds) >= 0
    assert outcome.queue_seconds + outcome.run_seconds <= elapsed
    [report] = reports.batches
    assert (report.key, report.size, report.rows) == (A, 4, 3)
    assert (report.reason, report.failed) == ("drained", False)
    assert report.waits == (Wait(outcome.queue_seconds, background=False),)
    assert 0 <= report.seconds <= outcome.run_seconds


async def test_only_a_job_s_first_rows_are_reported_as_having_queued() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        large = submitting(batcher, "large", rows=9)
        for _ in range(2):
            await device.begun()
            device.end()
        await large
    assert [len(report.waits) for report in reports.batches] == [1, 0]


async def test_a_devices_second_executor_is_predicted_to_start_when_the_first_ends() -> None:
    device, second = Device(), Device()
    costs = CostModel({A: Buckets({1: 10.0})})
    async with batcher_of(device, second, numbers=(0, 0), costs=costs) as batcher:
        tasks = [submitting(batcher, "first"), submitting(batcher, "second")]
        await device.begun()
        await second.begun()
        assert batcher.backlog().seconds > 10 + 9
        device.end()
        await tasks[0]
        assert 9 < batcher.backlog().seconds <= 10
        second.end()
        await tasks[1]


async def test_a_job_submitted_after_the_stop_fails() -> None:
    batcher = batcher_of(Device())
    async with batcher:
        pass
    with pytest.raises(Interrupted, match="stopping"):
        await submit(batcher, "late")


async def test_a_job_cancelled_with_its_outcome_is_not_reported_as_dropped() -> None:
    reports = Reports()
    device = Device()

    def report(reported: BatchReport | DropReport) -> None:
        reports(reported)
        task.cancel()  # the results are set, and the client's task has not run yet

    async with batcher_of(device, report=report) as batcher:
        task = submitting(batcher, "hasty")
        await device.begun()
        device.end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reports.drops == []


async def test_the_seconds_of_two_executors_of_one_device_do_not_overlap() -> None:
    device, second, reports = Device(), Device(), Reports()
    async with batcher_of(device, second, numbers=(0, 0), report=reports) as batcher:
        tasks = [submitting(batcher, "first")]
        await device.begun()
        tasks.append(submitting(batcher, "second"))
        await second.begun()  # both run: the device computes the first
        await settle()
        freed = time.monotonic()
        device.end()
        await tasks[0]
        second.end()
        await tasks[1]
    assert reports.batches[1].seconds <= time.monotonic() - freed


async def test_predicted_seconds_follow_the_seconds_of_batches() -> None:
    device = Device()
    async with batcher_of(device, costs=costs_of(table(seconds=1.0))) as batcher:
        with batcher.reserve([JobSpec(A, 1, 1)], time.monotonic() + MINUTE):
            before = batcher.backlog().seconds
        task = submitting(batcher, "quick")
        await device.begun()
        device.end()
        await task
        with batcher.reserve([JobSpec(A, 1, 1)], time.monotonic() + MINUTE):
            assert batcher.backlog().seconds < before


@pytest.mark.parametrize("is_busy", [False, True])
async def test_idle_devices_share_the_queued_rows(*, is_busy: bool) -> None:
    device, other = Device(), Device()
    async with batcher_of(device, other) as batcher:
        tasks = []
        if is_busy:
            tasks.append(submitting(batcher, "first"))
            await device.begun()
        tasks += [submitting(batcher, str(number)) for number in range(8)]
        if not is_busy:
            batch = await device.begun()
            assert (batch.size, batch.rows) == (4, 4)
        batch = await other.begun()
        assert (batch.size, batch.rows) == ((8, 8) if is_busy else (4, 4))
        device.end()
        other.end()
        await asyncio.gather(*tasks)


# Cancelled and late jobs.


async def test_a_job_cancelled_in_the_queue_is_not_run_and_is_reported() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        first = submitting(batcher, "first")
        await device.begun()
        gone, last = submitting(batcher, "gone", rows=5), submitting(batcher, "last")
        await settle()
        gone.cancel()
        await settle()
        assert (batcher.backlog().rows, batcher.backlog().nbytes) == (1, 2)
        device.end()
        assert truth(await device.begun()) == [("last", 0, 1)]
        device.end()
        await asyncio.gather(first, last)
    assert gone.cancelled()
    assert reports.drops == [DropReport("cancelled", "queue")]


async def test_of_jobs_with_one_deadline_only_the_cancelled_one_leaves_the_queue() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        first = submitting(batcher, "first")
        await device.begun()
        specs = [JobSpec(A, 1, 1)] * 3
        with batcher.reserve(specs, time.monotonic() + MINUTE) as reservations:
            tasks = [
                asyncio.create_task(batcher.submit(reservation, name))
                for reservation, name in zip(reservations, "abc", strict=True)
            ]
            await settle()
            tasks[1].cancel()
            await settle()
            device.end()
            assert truth(await device.begun()) == [("a", 0, 1), ("c", 0, 1)]
            device.end()
            await asyncio.gather(first, tasks[0], tasks[2])


async def test_a_job_cancelled_in_a_running_batch_does_not_affect_the_others() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        gone, neighbour = submitting(batcher, "gone"), submitting(batcher, "neighbour", rows=2)
        await device.begun()
        gone.cancel()
        await settle()
        device.end()
        assert (await neighbour).parts == (("neighbour", 0, 2),)
    assert gone.cancelled()
    assert reports.drops == [DropReport("cancelled", "batch")]
    assert [report.failed for report in reports.batches] == [False]


async def test_cancelling_a_large_job_removes_its_rows_that_have_not_run() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        large = submitting(batcher, "large", rows=100)
        await device.begun()
        large.cancel()
        await settle()
        assert (batcher.backlog().rows, batcher.backlog().nbytes) == (0, 0)
        device.end()
        after = submitting(batcher, "after")
        assert truth(await device.begun()) == [("after", 0, 1)]
        device.end()
        await after
    assert reports.drops == [DropReport("cancelled", "batch")]


async def test_a_job_whose_deadline_passes_in_a_batch_is_reported_as_late() -> None:
    device, reports = Device(), Reports()
    async with batcher_of(device, costs=costs_of(table(1e-6)), report=reports) as batcher:
        deadline = time.monotonic() + 0.05
        with (
            batcher.reserve([JobSpec(A, 1, 1)], deadline) as [reservation],
            pytest.raises(TimeoutError),
        ):
            async with asyncio.timeout_at(deadline):
                await batcher.submit(reservation, "late")
        await device.begun()
        device.end()
    assert reports.drops == [DropReport("late", "batch")]


# Failures.


async def test_a_failed_batch_fails_its_own_jobs_with_one_error_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR, "service.scheduling.batcher")
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        concerned = [submitting(batcher, "a"), submitting(batcher, "b")]
        await device.begun()
        spared = submitting(batcher, "c")
        await settle()
        device.end(failure)
        assert truth(await device.begun()) == [("c", 0, 1)]
        device.end()
        assert (await spared).parts == (("c", 0, 1),)
        errors = await asyncio.gather(*concerned, return_exceptions=True)
        assert [type(error) for error in errors] == [InferenceFailed] * 2
        assert errors[0] is not errors[1]
        assert batcher.alive
        assert batcher.backlog() == Backlog()
    assert [report.failed for report in reports.batches] == [True, False]
    assert "the device is on fire" in caplog.text


async def test_a_large_job_fails_with_the_first_of_its_batches_that_does() -> None:
    device, other = Device(), Device()
    async with batcher_of(device, other) as batcher:
        large = submitting(batcher, "large", rows=100)
        await device.begun()
        await other.begun()
        device.end(failure)
        with pytest.raises(InferenceFailed):
            await large
        assert batcher.backlog().rows == 0
        after = submitting(batcher, "after")
        assert truth(await device.begun()) == [("after", 0, 1)]
        device.end()
        other.end()  # its job has failed already
        await after


def no_memory(_: Batch[str]) -> list[Part]:
    raise OutOfMemory("not for so many")


async def test_a_batch_without_memory_is_split_and_its_size_is_not_used_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "service.scheduling.batch_runner")
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        first = submitting(batcher, "first")
        await device.begun()
        tasks = [submitting(batcher, "a", rows=3), submitting(batcher, "b", rows=4)]
        await settle()
        device.end()
        assert (await device.begun()).size == 8
        device.end(no_memory)
        piece = await device.begun()
        assert (piece.size, truth(piece)) == (4, [("a", 0, 3), ("b", 0, 1)])
        device.end()
        piece = await device.begun()
        assert (piece.size, truth(piece)) == (4, [("b", 1, 4)])
        device.end()
        assert [(await task).parts for task in (first, *tasks)] == [
            (("first", 0, 1),),
            (("a", 0, 3),),
            (("b", 0, 1), ("b", 1, 4)),
        ]
        assert batcher.failures == 0
        later = submitting(batcher, "later", rows=8)
        for rows in ((0, 4), (4, 8)):
            piece = await device.begun()
            assert (piece.size, truth(piece)) == (4, [("later", *rows)])
            device.end()
        await later
        other = submitting(batcher, "other", rows=8, key=B)  # of another key
        assert (await device.begun()).size == 8
        device.end()
        await other
        assert batcher.backlog() == Backlog()
    failed = [report.failed for report in reports.batches]
    assert failed == [False, True, False, False, False, False, False]
    (warning,) = (record.message for record in caplog.records)
    assert (
        warning == "out of device memory for a batch of 8 views of 224 pixels, now at most 4 views"
    )


async def test_a_piece_without_memory_is_split_again_down_to_one_row() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        tasks = [submitting(batcher, name, rows=4) for name in ("a", "b")]
        verdicts = [(8, no_memory), (4, truth), (4, no_memory), (2, truth), (2, no_memory)]
        for size, verdict in verdicts:
            assert (await device.begun()).size == size
            device.end(verdict)
        assert (await tasks[0]).parts == (("a", 0, 4),)
        assert (await device.begun()).size == 1
        device.end(no_memory)
        with pytest.raises(InferenceFailed):  # part of which was computed
            await tasks[1]
        after = submitting(batcher, "after", rows=2)
        for rows in ((0, 1), (1, 2)):
            assert truth(await device.begun()) == [("after", *rows)]
            device.end()
        await after


async def test_the_smallest_batch_without_memory_fails_and_is_tried_again() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        for _ in range(2):
            task = submitting(batcher, "a")
            assert (await device.begun()).size == 1
            device.end(no_memory)
            with pytest.raises(InferenceFailed):
                await task
        assert batcher.failures == 2
        task = submitting(batcher, "a")
        await device.begun()
        device.end()
        await task
        assert batcher.failures == 0


async def test_a_batch_of_an_excluded_size_does_not_change_costs() -> None:
    """Another executor ran one of this size when this one ran out of memory."""
    device, other = Device(), Device()
    async with batcher_of(device, other) as batcher:
        tasks = [submitting(batcher, name, rows=16) for name in "ab"]
        assert (await device.begun()).size == (await other.begun()).size == 8
        device.end(no_memory)
        assert (await device.begun()).size == 4
        other.end()
        await settle()
        while not all(task.done() for task in tasks):
            for each in (device, other):
                if each.batch:
                    assert each.batch.size <= 4
                    each.end()
            await settle()
        assert [len((await task).parts) for task in tasks] == [3, 4]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_wrong_number_of_results_fails_the_whole_batch(count: int) -> None:
    """Results cannot be matched to jobs then."""
    device, reports = Device(), Reports()
    async with batcher_of(device, report=reports) as batcher:
        tasks = [submitting(batcher, "a"), submitting(batcher, "b")]
        await device.begun()
        device.end(lambda _: [("whose?", 0, 1)] * count)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [InferenceFailed] * 2
        assert batcher.alive
    assert [report.failed for report in reports.batches] == [True]


async def test_a_policy_that_raises_fails_the_queued_jobs_and_the_loop_continues() -> None:
    device, curves = Device(), dict(costs_of(table()).curves)
    async with batcher_of(device, costs=CostModel(curves)) as batcher:
        specs = [JobSpec(A, 1, 1), JobSpec(B, 1, 1)]
        with batcher.reserve(specs, time.monotonic() + MINUTE) as reservations:
            lost = curves.pop(A)
            tasks = [
                asyncio.create_task(batcher.submit(reservation, "lost"))
                for reservation in reservations
            ]
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in errors] == [InferenceFailed] * 2
            assert errors[0] is not errors[1]
        curves[A] = lost
        assert batcher.alive
        after = submitting(batcher, "after")
        await device.begun()
        device.end()
        assert (await after).parts == (("after", 0, 1),)


async def test_stopping_fails_queued_and_running_jobs() -> None:
    device, reports = Device(), Reports()
    async with contextlib.AsyncExitStack() as life:
        batcher = await life.enter_async_context(batcher_of(device, report=reports))
        runs = submitting(batcher, "runs")
        await device.begun()
        waits = submitting(batcher, "waits")
        await settle()
        with batcher.reserve([JobSpec(A, 1, 1)], time.monotonic() + MINUTE):
            await life.aclose()  # while a reservation is unused
    assert not batcher.alive
    device.end()
    errors = await asyncio.gather(runs, waits, return_exceptions=True)
    assert [type(error) for error in errors] == [Interrupted] * 2
    assert errors[0] is not errors[1]
    assert [report.failed for report in reports.batches] == [True]


# Admission.


async def test_a_job_that_became_late_in_the_queue_fails_and_is_not_run() -> None:
    device, reports, curves = Device(), Reports(), dict(costs_of(table()).curves)
    async with batcher_of(device, costs=CostModel(curves), report=reports) as batcher:
        with batcher.reserve([JobSpec(A, 1, 1)], time.monotonic() + MINUTE) as [reservation]:
            curves[A] = Buckets(dict.fromkeys(BUCKETS, 2 * MINUTE))  # the device turned slow
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(reservation, "late")
        other = submitting(batcher, "other", key=B)
        assert truth(await device.begun()) == [("other", 0, 1)]
        device.end()
        await other
    assert reports.drops == [DropReport("late", "queue")]


async def test_a_job_without_time_is_refused_with_a_retry_time() -> None:
    costs = CostModel({A: Buckets({1: 10.0})})
    async with batcher_of(Device(), costs=costs) as batcher:
        job = [JobSpec(A, 1, 1)]
        now = time.monotonic()
        with batcher.reserve(job, now + 15):
            with pytest.raises(Overloaded) as refused, batcher.reserve(job, now + 15):
                pass
            assert 15 <= refused.value.retry_after <= 15 + time.monotonic() - now
            assert batcher.backlog().rows == 1
        with batcher.reserve(job, now + MINUTE):
            assert batcher.backlog().rows == 1


async def test_more_devices_admit_more() -> None:
    async with batcher_of(Device(), Device(), costs=CostModel({A: Buckets({1: 10.0})})) as batcher:
        with batcher.reserve([JobSpec(A, 1, 1)] * 2, time.monotonic() + 15):
            assert batcher.backlog().seconds == 15  # an even share, and half of the longest batch


@pytest.mark.parametrize(
    ("spec", "seconds", "error"),
    [
        (JobSpec(A, 1, 1), MINUTE, None),
        (JobSpec(A, 1, 1), 15.0, Overloaded),
        (JobSpec(A, 2, 1), 15.0, DeadlineExceeded),
        (JobSpec(A, 1, 101), MINUTE, TooLarge),
        (JobSpec(A, 1, 60), MINUTE, Overloaded),
    ],
)
async def test_a_check_raises_the_error_of_reserving_and_holds_nothing(
    spec: JobSpec, seconds: float, error: type[ServiceError] | None
) -> None:
    def refusal(attempt: Callable[[], None]) -> type[ServiceError] | None:
        try:
            attempt()
        except ServiceError as refused:
            return type(refused)
        return None

    async with batcher_of(
        Device(), costs=CostModel({A: Buckets({1: 10.0})}), max_bytes=100
    ) as batcher:

        def reserve() -> None:
            with batcher.reserve([spec], time.monotonic() + seconds):
                pass

        with batcher.reserve([JobSpec(A, 1, 50)], time.monotonic() + MINUTE):
            held = batcher.backlog()
            assert refusal(lambda: batcher.admit([spec], seconds)) is error
            assert batcher.backlog() == held
            assert refusal(reserve) is error


async def test_payloads_are_bounded_in_bytes() -> None:
    async with batcher_of(Device(), max_bytes=100) as batcher:
        deadline = time.monotonic() + MINUTE
        with batcher.reserve([JobSpec(A, 1, 60)], deadline):
            too_much = [JobSpec(A, 1, 25)] * 2
            with (
                pytest.raises(Overloaded, match="100 bytes"),
                batcher.reserve(too_much, deadline),
            ):
                pass
            with (
                pytest.raises(TooLarge, match="101 bytes"),
                batcher.reserve([JobSpec(A, 1, 101)], deadline),
            ):
                pass
            with batcher.reserve([JobSpec(A, 1, 40)], deadline):
                assert batcher.backlog().nbytes == 100


async def test_checking_a_long_job_keeps_no_headroom_for_it() -> None:
    """Only a reservation does: a request's head may announce anything."""
    async with batcher_of(Device()) as batcher:
        with batcher.reserve([JobSpec(A, 1, 1)], time.monotonic() + MINUTE):
            before = batcher.admit([JobSpec(A, 1, 1)], MINUTE).retry_after
            batcher.admit([JobSpec(A, 16 * 10, 1)], 100 * MINUTE)
            assert batcher.admit([JobSpec(A, 1, 1)], MINUTE).retry_after == before
        assert batcher._intake._headroom.seconds == pytest.approx(1.1)  # noqa: SLF001 - of the reserved job


# Reservations.


async def test_leaving_also_by_an_error_releases_unused_reservations() -> None:
    async with batcher_of(Device()) as batcher:
        specs = [JobSpec(A, 3, 10), JobSpec(B, 4, 20)]
        reserved = batcher.reserve(specs, time.monotonic() + MINUTE)
        with contextlib.suppress(ZeroDivisionError), reserved as reservations:
            assert [reservation.spec for reservation in reservations] == specs
            assert (batcher.backlog().rows, batcher.backlog().nbytes) == (7, 30)
            raise ZeroDivisionError
        assert batcher.backlog() == Backlog()


async def test_a_reservation_may_be_released_twice() -> None:
    async with batcher_of(Device()) as batcher:
        deadline = time.monotonic() + MINUTE
        with batcher.reserve([JobSpec(A, 3, 10), JobSpec(A, 1, 1)], deadline) as [
            reservation,
            _,
        ]:
            batcher.release(reservation)
            batcher.release(reservation)
            assert (batcher.backlog().rows, batcher.backlog().nbytes) == (1, 1)
        assert batcher.backlog() == Backlog()


async def test_the_backlog_counts_rows_until_they_are_taken_and_bytes_until_they_are_done() -> None:
    device = Device()
    async with batcher_of(device, costs=CostModel({A: Buckets({1: 10.0})})) as batcher:
        assert batcher.backlog() == Backlog()
        deadline = time.monotonic() + MINUTE
        with batcher.reserve([JobSpec(A, 2, 5)], deadline) as [reservation]:
            assert batcher.backlog() == Backlog(rows=2, nbytes=5, seconds=20.0)
            task = asyncio.create_task(batcher.submit(reservation, "a"))
            began = time.monotonic()
            await device.begun()
            backlog = batcher.backlog()
            elapsed = time.monotonic() - began
            assert (backlog.rows, backlog.nbytes) == (1, 5)
            assert 20 - elapsed <= backlog.seconds <= 20
            assert 0 < backlog.stalled <= elapsed
            device.end()
            await device.begun()
            assert (batcher.backlog().rows, batcher.backlog().nbytes) == (0, 5)
            device.end()
            await task
            assert batcher.backlog() == Backlog()


# Any order of events.


@dataclass(frozen=True)
class Arrive:
    """A client reserves, takes some turns of the loop to make its payload, and submits."""

    clients: int
    key: Key
    rows: int
    turns: int
    seconds: float


@dataclass(frozen=True)
class Cancel:
    """The n-th of the present clients disconnects."""

    nth: int


@dataclass(frozen=True)
class End:
    """The n-th of the batches that run ends."""

    nth: int
    verdict: Verdict


@dataclass(frozen=True)
class Slow:
    """Buckets turn out to cost a thousand times as much, unless that is known better by now."""

    key: Key
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Calm:
    """All present clients are served, and no others come meanwhile."""


Event = Arrive | Cancel | End | Slow | Calm

arrivals = st.builds(
    Arrive,
    clients=st.sampled_from([1, 1, 1, 2, 4, 6]),
    key=st.sampled_from(KEYS),
    rows=st.sampled_from([1, 1, 1, 2, 3, 8, 9, 20]),
    turns=st.sampled_from([0, 0, 1, 3]),
    seconds=st.sampled_from([5.0, 50.0, 500.0, 5_000.0]),
)
ends = st.builds(End, st.integers(0, 2), st.sampled_from([truth, truth, truth, failure]))
cancels = st.builds(Cancel, st.integers(0, 9))
slows = st.builds(Slow, st.sampled_from(KEYS), st.sampled_from([BUCKETS, (1,), (1, 2), (8,)]))
calms = st.just(Calm())
events = st.one_of(*[arrivals] * 4, *[ends] * 4, *[cancels] * 2, slows, *[calms] * 2)


class Story:
    """Random clients and devices, and the invariants that hold for them."""

    def __init__(self, executors: int) -> None:
        self.seconds = table()
        self.devices = [Device() for _ in range(executors)]
        self.reports = Reports()
        self.batcher = batcher_of(
            *self.devices,
            costs=costs_of(self.seconds),
            max_bytes=100,
            report=self._report,
        )
        self.clients: dict[str, tuple[Arrive, asyncio.Task[Outcome[Part]]]] = {}
        self.cancelled: set[str] = set()
        self.preparing = 0  # rows that are reserved and not submitted
        self.taken: list[Part] = []  # by any batch, in order
        self.failed: set[str] = set()  # who was in a batch that failed
        self._changed = asyncio.Event()
        for device in self.devices:
            device.notify = self._changed.set

    def _report(self, report: BatchReport | DropReport) -> None:
        self.reports(report)
        self._changed.set()

    async def _call(self, arrive: Arrive, name: str) -> Outcome[Part]:
        spec = JobSpec(arrive.key, arrive.rows, arrive.rows)
        deadline = time.monotonic() + arrive.seconds
        with self.batcher.reserve([spec], deadline) as [reservation]:
            await self._prepare(arrive)
            return await self.batcher.submit(reservation, name)

    async def _prepare(self, arrive: Arrive) -> None:
        self.preparing += arrive.rows
        try:
            for _ in range(arrive.turns):
                await asyncio.sleep(0)
        finally:
            self.preparing -= arrive.rows

    @property
    def running(self) -> list[Device]:
        """The devices that have a batch."""
        return [device for device in self.devices if device.batch]

    @property
    def there(self) -> list[str]:
        """The clients that have neither an outcome nor an error yet."""
        return [name for name, (_, task) in self.clients.items() if not task.done()]

    async def happen(self, event: Event) -> None:
        """Make one thing happen."""
        match event:
            case Arrive():
                for _ in range(event.clients):
                    name = f"client {len(self.clients)}"
                    self.clients[name] = event, asyncio.create_task(self._call(event, name))
                await asyncio.sleep(0)  # they have reserved; a task cancelled before never starts
            case Cancel(nth) if self.there:
                name = self.there[nth % len(self.there)]
                self.clients[name][1].cancel()
                self.cancelled.add(name)
            case End(nth, verdict) if self.running:
                await self._end(self.running[nth % len(self.running)], verdict)
            case Slow(key, sizes):
                for size in sizes:
                    self.seconds[key][size] *= 1_000
            case Calm():
                await self.finish()

    async def _end(self, device: Device, verdict: Verdict) -> None:
        batch = await device.begun()
        assert 0 < batch.rows <= batch.size
        assert batch.size in BUCKETS
        assert {self.clients[part.payload][0].key for part in batch.slices} == {batch.key}
        self.taken += truth(batch)
        if verdict is failure:
            self.failed |= {part.payload for part in batch.slices}
        before = len(self.reports.batches)
        device.end(verdict)
        await self._until(lambda: len(self.reports.batches) > before)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), HANG)

    async def no_executor_idles_while_rows_wait(self) -> None:
        """Wait for the reports of executors; an idle one reports nothing."""
        await settle()
        await self._until(
            lambda: (
                len(self.running) == len(self.devices)
                or self.batcher.backlog().rows == self.preparing
            )
        )

    async def finish(self) -> None:
        """End batches until no client is left."""
        while self.there:
            await self.no_executor_idles_while_rows_wait()
            if not self.running:
                await self._until(lambda: bool(self.running) or not self.there)
            for device in self.running:
                await self._end(device, truth)
            await settle()

    def each_got_its_own(self) -> None:
        """Compare the clients' outcomes with what the devices ran."""
        errors = []
        for name, (arrive, task) in self.clients.items():
            mine = sorted(part for part in self.taken if part[0] == name)
            assert all(
                part[2] <= after[1] for part, after in itertools.pairwise(mine)
            )  # none twice
            if task.cancelled():
                assert name in self.cancelled
            elif error := task.exception():
                assert isinstance(error, ServiceError)
                assert name in self.failed or not isinstance(error, InferenceFailed)
                errors.append(error)
            else:
                assert name not in self.failed
                assert list(task.result().parts) == mine
                assert sum(stop - start for _, start, stop in mine) == arrive.rows
        assert len({id(error) for error in errors}) == len(errors)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.lists(events, min_size=10, max_size=60))
def test_each_job_gets_its_own_results_or_error(executors: int, events: list[Event]) -> None:
    async def scene() -> None:
        story = Story(executors)
        async with story.batcher:
            for event in events:
                await story.happen(event)
                await story.no_executor_idles_while_rows_wait()
            await story.finish()
            assert story.batcher.alive
            backlog = story.batcher.backlog()
            assert (backlog.rows, backlog.nbytes) == (0, 0)
        for device in story.devices:  # some may run for clients that are gone
            device.end()
        story.each_got_its_own()

    in_event_loop(scene())
