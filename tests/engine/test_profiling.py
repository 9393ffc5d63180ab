"""Measurement of batch costs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small import Toy, toy

from service.engine import profiling, torch_device
from service.engine.executor import DeviceExecutor
from service.engine.prepared_image import PreparedImage
from service.errors import OutOfMemory
from service.imaging.crops import CROP, DENSE
from service.models.ensemble import Result
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch

KEY, LARGE, MAP = Key(0, CROP), Key(0, DENSE), Key(0, CROP, maps=True)
PATIENCE = 10.0  # seconds, for what happens at once


@dataclass
class Recorder:
    """A fake `run` that records batches and may have a side effect."""

    meanwhile: Callable[[Batch[PreparedImage]], object] = lambda _: None
    batches: list[Batch[PreparedImage]] = field(default_factory=list)

    def run(self, asked: Batch[PreparedImage]) -> Sequence[Result]:
        """Record a batch."""
        self.batches.append(asked)
        self.meanwhile(asked)
        return [np.zeros(3) for _ in asked.slices]

    @property
    def sizes(self) -> list[int]:
        """The distinct batches in order."""
        return list(dict.fromkeys(batch.size for batch in self.batches))


def scarce(rows: int) -> Callable[[Batch[PreparedImage]], None]:
    """Run out of memory above a number of rows."""

    def meanwhile(batch: Batch[PreparedImage]) -> None:
        with torch_device.memory():
            torch.empty(2**50 if batch.rows > rows else 1)

    return meanwhile


class Explained(Toy):
    """A model that has maps, of one size of views."""

    explains = True
    sides = (CROP,)


def test_keys_by_member_size_and_maps() -> None:
    assert profiling.keys([toy(), toy(Explained)]) == [
        Key(0, CROP),
        Key(0, DENSE),
        Key(1, CROP),
        Key(1, CROP, maps=True),
    ]


@pytest.mark.parametrize("key", [KEY, LARGE, MAP])
def test_blank_batch(key: Key) -> None:
    made = profiling.blank(key, 3)
    assert (made.key, made.size, made.rows, len(made.slices)) == (key, 3, 3, 3)
    assert {part.payload.canvases[0].shape for part in made.slices} == {(key.side, key.side, 3)}


# On a CPU.


@pytest.mark.parametrize(
    ("key", "largest", "sizes", "most"),
    [
        (KEY, 16, [1, 4, 16], 16),
        (KEY, 1, [1], 1),
        (LARGE, 16, [1, 4], 16),  # few ask for those
        (MAP, 16, [1], 1),  # they are made one at a time
    ],
)
def test_line_is_fitted_to_a_few_sizes(key: Key, largest: int, sizes: list[int], most: int) -> None:
    recorder = Recorder()
    line = profiling.measure_line(DeviceExecutor(recorder.run), key, largest)
    assert recorder.sizes == sizes
    assert line.largest == most
    assert all(asked.key == key and asked.rows == asked.size for asked in recorder.batches)
    assert line.seconds(1) > 0


@pytest.mark.parametrize(("key", "sizes", "most"), [(KEY, [1, 4, 16], 4), (LARGE, [1, 4], 1)])
def test_sizes_out_of_memory_are_left_out_of_the_line(
    key: Key, sizes: list[int], most: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(scarce(most))
    line = profiling.measure_line(DeviceExecutor(recorder.run), key, 16)
    assert recorder.sizes == sizes
    assert line.largest == most
    (record,) = caplog.records
    assert record.message == f"out of memory for a batch of {sizes[-1]} views of {key.side} pixels"


def test_out_of_memory_for_one_view_is_an_error() -> None:
    with pytest.raises(OutOfMemory, match="no memory for this batch"):
        profiling.measure_line(DeviceExecutor(Recorder(scarce(0)).run), KEY, 16)


@pytest.mark.parametrize("key", [KEY, LARGE, MAP])
def test_cached_costs_are_warmed_up_with_the_same_batches(key: Key) -> None:
    first, later = Recorder(), Recorder()
    line = profiling.measure_line(DeviceExecutor(first.run), key, 16)
    profiling.warm_up(DeviceExecutor(later.run), key, line)
    assert later.sizes == first.sizes
    assert len(later.batches) == len(first.sizes)


# On GPUs.


def test_every_bucket_is_measured_on_every_executor() -> None:
    recorders = [Recorder() for _ in range(4)]
    executors = [DeviceExecutor(one.run, number // 2) for number, one in enumerate(recorders)]
    buckets = profiling.measure_buckets(executors, KEY, [1, 2, 5])
    assert buckets.sizes == [1, 2, 5]
    for recorder in recorders:
        assert recorder.sizes == [1, 2, 5]
        assert all(asked.rows == asked.size for asked in recorder.batches)


def test_maps_are_measured_one_at_a_time() -> None:
    recorder = Recorder()
    assert profiling.measure_buckets([DeviceExecutor(recorder.run)], MAP, [1, 2, 5]).sizes == [1]
    assert recorder.sizes == [1]


def test_buckets_out_of_memory_are_left_out() -> None:
    recorder = Recorder(scarce(2))
    assert profiling.measure_buckets([DeviceExecutor(recorder.run)], KEY, [1, 2, 4, 8]).sizes == [
        1,
        2,
    ]
    assert recorder.sizes == [1, 2, 4]


def test_devices_are_measured_concurrently() -> None:
    together = threading.Barrier(2)
    recorders = [Recorder(lambda _: together.wait(PATIENCE)) for _ in range(2)]
    executors = [DeviceExecutor(one.run, number) for number, one in enumerate(recorders)]
    assert profiling.measure_buckets(executors, KEY, [1]).sizes == [1]
    assert not together.broken


def test_executors_of_one_device_are_measured_in_turn() -> None:
    turn = threading.Lock()

    def taking_turns(_: object) -> None:
        assert turn.acquire(blocking=False), "both executors of one device ran"
        turn.release()

    recorders = [Recorder(taking_turns), Recorder(taking_turns)]
    profiling.measure_buckets([DeviceExecutor(one.run, 0) for one in recorders], KEY, [1, 2])
    assert all(recorder.sizes == [1, 2] for recorder in recorders)


# A run.


@pytest.mark.parametrize(("repeats", "runs"), [(1, 2), (5, 6)])
def test_short_runs_are_repeated_after_a_warmup(repeats: int, runs: int) -> None:
    ran: list[None] = []
    assert profiling.measure(lambda: ran.append(None), repeats=repeats) > 0
    assert len(ran) == runs


def test_a_long_run_is_not_repeated() -> None:
    ran: list[bool] = []

    def run() -> None:
        ran.append(threading.Event().wait(0.11))

    profiling.measure(run, repeats=5)
    assert len(ran) == 2
