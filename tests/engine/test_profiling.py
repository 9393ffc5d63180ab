"""What batches cost: which are run to find out, on which executors, and what is left out."""

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
    """What an executor runs: it notes the batches, and may do something meanwhile."""

    meanwhile: Callable[[Batch[PreparedImage]], object] = lambda _: None
    batches: list[Batch[PreparedImage]] = field(default_factory=list)

    def run(self, asked: Batch[PreparedImage]) -> Sequence[Result]:
        """Note a batch."""
        self.batches.append(asked)
        self.meanwhile(asked)
        return [np.zeros(3) for _ in asked.slices]

    @property
    def sizes(self) -> list[int]:
        """What was run, in this order, each once."""
        return list(dict.fromkeys(batch.size for batch in self.batches))


def scarce(rows: int) -> Callable[[Batch[PreparedImage]], None]:
    """Need too much memory for more than so many rows."""

    def meanwhile(batch: Batch[PreparedImage]) -> None:
        with torch_device.memory():
            torch.empty(2**50 if batch.rows > rows else 1)

    return meanwhile


class Explained(Toy):
    """A model that has maps, of one size of views."""

    explains = True
    sides = (CROP,)


def test_batches_are_of_each_member_each_size_of_views_and_of_maps_where_there_are_any() -> None:
    assert profiling.keys([toy(), toy(Explained)]) == [
        Key(0, CROP),
        Key(0, DENSE),
        Key(1, CROP),
        Key(1, CROP, maps=True),
    ]


@pytest.mark.parametrize("key", [KEY, LARGE, MAP])
def test_a_blank_batch_has_as_many_views_as_slices(key: Key) -> None:
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
def test_a_few_sizes_are_timed_and_a_line_put_through_them(
    key: Key, largest: int, sizes: list[int], most: int
) -> None:
    recorder = Recorder()
    line = profiling.measure_line(DeviceExecutor(recorder.run), key, largest)
    assert recorder.sizes == sizes
    assert line.largest == most
    assert all(asked.key == key and asked.rows == asked.size for asked in recorder.batches)
    assert line.seconds(1) > 0


@pytest.mark.parametrize(("key", "sizes", "most"), [(KEY, [1, 4, 16], 4), (LARGE, [1, 4], 1)])
def test_batches_for_which_there_is_no_memory_are_left_out(
    key: Key, sizes: list[int], most: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(scarce(most))
    line = profiling.measure_line(DeviceExecutor(recorder.run), key, 16)
    assert recorder.sizes == sizes
    assert line.largest == most
    (record,) = caplog.records
    assert record.message == f"no memory for {sizes[-1]} views of {key.side} pixels at once"


def test_a_device_without_memory_for_one_view_cannot_serve() -> None:
    with pytest.raises(OutOfMemory, match="no memory for this batch"):
        profiling.measure_line(DeviceExecutor(Recorder(scarce(0)).run), KEY, 16)


@pytest.mark.parametrize("key", [KEY, LARGE, MAP])
def test_what_was_measured_earlier_is_warmed_up_with_the_same_batches(key: Key) -> None:
    first, later = Recorder(), Recorder()
    line = profiling.measure_line(DeviceExecutor(first.run), key, 16)
    profiling.warm_up(DeviceExecutor(later.run), key, line)
    assert later.sizes == first.sizes
    assert len(later.batches) == len(first.sizes)


# On GPUs.


def test_every_bucket_is_timed_on_every_executor() -> None:
    recorders = [Recorder() for _ in range(4)]
    executors = [DeviceExecutor(one.run, number // 2) for number, one in enumerate(recorders)]
    buckets = profiling.measure_buckets(executors, KEY, [1, 2, 5])
    assert buckets.sizes == [1, 2, 5]
    for recorder in recorders:
        assert recorder.sizes == [1, 2, 5]
        assert all(asked.rows == asked.size for asked in recorder.batches)


def test_maps_are_timed_one_at_a_time() -> None:
    recorder = Recorder()
    assert profiling.measure_buckets([DeviceExecutor(recorder.run)], MAP, [1, 2, 5]).sizes == [1]
    assert recorder.sizes == [1]


def test_buckets_for_which_there_is_no_memory_are_left_out() -> None:
    recorder = Recorder(scarce(2))
    assert profiling.measure_buckets([DeviceExecutor(recorder.run)], KEY, [1, 2, 4, 8]).sizes == [
        1,
        2,
    ]
    assert recorder.sizes == [1, 2, 4]


def test_a_batch_is_timed_with_all_devices_at_it() -> None:
    together = threading.Barrier(2)
    recorders = [Recorder(lambda _: together.wait(PATIENCE)) for _ in range(2)]
    executors = [DeviceExecutor(one.run, number) for number, one in enumerate(recorders)]
    assert profiling.measure_buckets(executors, KEY, [1]).sizes == [1]
    assert not together.broken


def test_the_executors_of_one_device_are_timed_one_after_the_other() -> None:
    turn = threading.Lock()

    def taking_turns(_: object) -> None:
        assert turn.acquire(blocking=False), "both executors of one device ran"
        turn.release()

    recorders = [Recorder(taking_turns), Recorder(taking_turns)]
    profiling.measure_buckets([DeviceExecutor(one.run, 0) for one in recorders], KEY, [1, 2])
    assert all(recorder.sizes == [1, 2] for recorder in recorders)


# A run.


@pytest.mark.parametrize(("repeats", "runs"), [(1, 2), (5, 6)])
def test_quick_runs_are_repeated_after_one_to_warm_up(repeats: int, runs: int) -> None:
    ran: list[None] = []
    assert profiling.measure(lambda: ran.append(None), repeats=repeats) > 0
    assert len(ran) == runs


def test_a_long_run_is_not_repeated() -> None:
    ran: list[bool] = []

    def run() -> None:
        ran.append(threading.Event().wait(0.11))

    profiling.measure(run, repeats=5)
    assert len(ran) == 2
