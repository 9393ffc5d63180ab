"""Lanes: how a CPU's cores are shared out, who answers what, and what each batch size costs."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import needs_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forward import Toy, toy
from test_rows import batch, cuts, noise, whole
from torch import Tensor, fx, nn

from service import lanes, runtime, weights
from service.costs import Key
from service.cuts import Cuts
from service.ensemble import Probabilities
from service.errors import OutOfMemory
from service.images import decode
from service.lanes import ClassifyingLane, Layout, Maker, best, layouts
from service.store import Store
from service.views import CROP, DENSE
from service.weights import Model
from service.work import Batch, Slice

CPU = torch.device("cpu")
KEYS = [Key(0, CROP), Key(0, DENSE)]
PATIENCE = 10.0  # seconds, for what happens at once
WHILE = 0.1  # seconds; longer than a small batch takes on a busy machine


# Sharing out.


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (4, [(1, 4), (2, 2), (4, 1)]),
        (6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
    ],
)
def test_cores_are_shared_out_by_powers_of_two_and_one_by_one(
    cores: int, expected: list[tuple[int, int]]
) -> None:
    assert layouts(cores, 0) == [Layout(*each) for each in expected]


@pytest.mark.parametrize(
    ("cores", "executors", "expected"),
    [(4, 1, (1, 4)), (4, 3, (3, 1)), (8, 3, (3, 2)), (2, 2, (2, 1)), (2, 9, (2, 1))],
)
def test_as_many_lanes_as_are_asked_for_share_the_cores_if_there_are_so_many(
    cores: int, executors: int, expected: tuple[int, int]
) -> None:
    assert layouts(cores, executors) == [Layout(*expected)]


@given(st.integers(1, 300), st.integers(0, 300))
@settings(deadline=None, derandomize=True)
def test_no_layout_has_more_threads_than_cores(cores: int, executors: int) -> None:
    for layout in layouts(cores, executors):
        assert layout.lanes >= 1
        assert layout.threads >= 1
        assert layout.lanes * layout.threads <= cores


def test_the_layout_with_most_rows_a_second_is_the_best() -> None:
    assert best({Layout(1, 4): 100.0, Layout(2, 2): 150.0, Layout(4, 1): 120.0}) == Layout(2, 2)


def test_of_layouts_that_are_as_good_the_one_with_most_lanes_is_the_best() -> None:
    assert best({Layout(1, 4): 100.0, Layout(2, 2): 97.0, Layout(4, 1): 96.0}) == Layout(4, 1)


# Networks that take as long as a test says, by the threads they are given.


def dawdle(x: Tensor, on_one: float, on_more: float) -> Tensor:
    """Take so many seconds on one thread, and so many on more."""
    time.sleep(on_one if torch.get_num_threads() == 1 else on_more)
    return x


fx.wrap("dawdle")  # a call in the rewritten network too


class Dawdling(nn.Module):
    """A network that dawdles first."""

    def __init__(self, network: nn.Module, on_one: float, on_more: float) -> None:
        super().__init__()
        self.network, self.on_one, self.on_more = network, on_one, on_more

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        y: Tensor = self.network(dawdle(x, self.on_one, self.on_more))
        return y


class BestOnMany(Toy):
    """A model whose batches are done at once by several threads, and not by one."""

    def network(self) -> nn.Module:
        """Build it."""
        return Dawdling(super().network(), WHILE, 0.0)


class MuchBetterOnMany(Toy):
    """A model that two threads do many times as quickly."""

    def network(self) -> nn.Module:
        """Build it."""
        return Dawdling(super().network(), 3 * WHILE, 0.0)


class BestOnOne(Toy):
    """A model that threads only hinder."""

    def network(self) -> nn.Module:
        """Build it."""
        return Dawdling(super().network(), 0.0, WHILE)


def keys(members: int, sizes: Sequence[int]) -> dict[Key, Sequence[int]]:
    """Give the batch sizes of every key of so many members."""
    return {Key(member, side): sizes for member in range(members) for side in (CROP, DENSE)}


def on_cpu(
    kind: type[Model], *, sizes: Sequence[int] = (1, 2, 4), cores: int = 4, executors: int = 0
) -> tuple[ClassifyingLane, ...]:
    return Maker([toy(kind)], torch.float32, sizes).on_cpu(cores, executors)


def beside(made: Sequence[ClassifyingLane]) -> list[ClassifyingLane]:
    return [lane for lane in made if not lane.alone]


def answers(lane: ClassifyingLane, asked: Batch[Cuts]) -> list[npt.NDArray[np.float64]]:
    """Run a batch as the batcher does: in a thread of the lane's own."""
    given: list[Probabilities] = []
    thread = threading.Thread(target=lambda: given.extend(lane.run(asked)))
    thread.start()
    thread.join()
    return given


# The CPU's lanes.


@pytest.mark.parametrize("executors", [1, 2, 4])
def test_as_many_lanes_are_made_as_were_asked_for_each_a_device(executors: int) -> None:
    made = on_cpu(BestOnOne, cores=executors, executors=executors)
    assert [lane.device for lane in made] == [*range(executors)]


def test_one_lane_needs_no_other_for_a_request_that_comes_alone() -> None:
    assert [lane.alone for lane in on_cpu(BestOnMany, executors=1)] == [0]


def test_where_lanes_of_one_thread_do_most_there_are_as_many_as_cores() -> None:
    assert len(beside(on_cpu(BestOnOne, sizes=(1,), cores=2))) == 2


def test_where_threads_help_more_than_lanes_there_is_one_lane() -> None:
    assert len(on_cpu(MuchBetterOnMany, sizes=(1,), cores=2)) == 1


@pytest.mark.parametrize(
    ("cores", "sizes", "alone"), [(2, (1, 2, 4), 1), (3, (1, 2, 3), 2), (4, (1, 2, 4), 2)]
)
def test_a_lane_of_all_cores_is_for_fewer_rows_than_there_are_lanes(
    cores: int, sizes: tuple[int, ...], alone: int
) -> None:
    made = on_cpu(BestOnMany, sizes=sizes, cores=cores, executors=cores)
    assert [lane.alone for lane in made] == [0] * cores + [alone]
    assert made[-1].device not in {lane.device for lane in beside(made)}


def test_a_lane_of_all_cores_that_is_no_quicker_is_not_there() -> None:
    assert [lane.alone for lane in on_cpu(BestOnOne, cores=2, executors=2)] == [0, 0]


def test_where_no_size_is_smaller_than_the_lanes_are_many_none_is_alone() -> None:
    assert [lane.alone for lane in on_cpu(BestOnMany, sizes=(2,), cores=2, executors=2)] == [0, 0]


class Told(Toy):
    """A model that answers with the number of threads it was computed on."""

    def network(self) -> nn.Module:
        """Build it."""
        return Telling()


def threads_told(x: Tensor) -> Tensor:
    """Be surest of the first class on one thread, and of the second on more."""
    logits = torch.zeros((x.shape[0], 3))
    logits[:, min(torch.get_num_threads(), 2) - 1] = 10
    time.sleep(WHILE if torch.get_num_threads() == 1 else 0.0)
    return logits


fx.wrap("threads_told")


class Telling(nn.Module):
    """Its network."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        return threads_told(x)


def test_lanes_side_by_side_have_their_share_of_the_cores_and_the_lone_one_has_all() -> None:
    asked = batch(whole(cuts(noise(0), "single")))
    made = on_cpu(Told, cores=2, executors=2)
    assert [int(answers(lane, asked)[0].argmax()) + 1 for lane in made] == [1, 1, 2]


class Real(Model):
    """A real model whose lone batches are quicker on several threads, whatever else goes on."""

    explains = False

    def network(self) -> nn.Module:
        """Build it."""
        return Dawdling(super().network(), 2 * WHILE, 0.0)


def test_every_lane_gives_the_same_answers(real_store: Store, beagle: bytes) -> None:
    model = weights.load(real_store, "bvlc_googlenet")
    slow = Real(model.name, model.manifest, model.labels, model.sha256, model.state)
    made = Maker([slow], torch.float32, [1]).on_cpu(2, 2)
    assert [lane.alone for lane in made] == [0, 0, 1]
    photo = decode(beagle, max_pixels=10**8)
    crop, dense = (batch(Slice(cuts(photo, name), 0, 1)) for name in ("single", "dense"))
    first, *others = [
        np.stack([answers(lane, asked)[0] for asked in (crop, dense)]) for lane in made
    ]
    assert first.argmax(1).tolist() == [162] * 2
    for other in others:
        assert other == pytest.approx(first, abs=1e-5)


def test_lanes_that_run_at_the_same_time_do_not_mix_up_their_answers(
    real_store: Store, shared: Path
) -> None:
    made = Maker([weights.load(real_store, "bvlc_googlenet")], torch.float32, [2]).on_cpu(2, 2)
    photos = [shared / f"photos/flickr/{name}.jpg" for name in ("beagle", "tractor")]
    asked = [
        batch(Slice(cuts(decode(photo.read_bytes(), max_pixels=10**8), "ten"), 4, 6))
        for photo in photos
    ]
    expected = [answers(made[0], one)[0] for one in asked]
    assert np.abs(expected[0] - expected[1]).max() > 0.5
    with ThreadPoolExecutor(len(made)) as threads:
        for _ in range(5):
            got = threads.map(lambda lane, one: lane.run(one)[0], made, asked)
            for ours, theirs in zip(got, expected, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-5)


def test_each_member_is_asked_with_its_own_rows() -> None:
    other = replace(toy(), name="other", state={"sharpness": torch.tensor(0.0)})
    (lane,) = Maker([toy(), other], torch.float32, [1]).on_cpu(1, 1)
    payload = cuts(noise(0).resize((1, 1)), "single")
    (sharp,), (flat,) = (answers(lane, batch(whole(payload), member=n)) for n in (0, 1))
    assert np.ptp(sharp) > 0.01
    assert flat == pytest.approx([1 / 3] * 3)


# The GPUs' lanes.


def test_each_device_has_two_lanes() -> None:
    """That they are GPUs is nothing to do with it."""
    made = Maker([toy()], torch.float32, [1]).on_gpus([CPU, CPU])
    assert [(lane.device, lane.alone) for lane in made] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    asked = batch(whole(cuts(noise(0), "single")))
    first, *others = [answers(lane, asked)[0] for lane in made]
    assert all(np.array_equal(first, other) for other in others)


@needs_gpu
def test_the_lanes_of_a_gpu_answer_as_those_of_the_cpu_do(real_store: Store) -> None:
    maker = Maker([weights.load(real_store, "bvlc_googlenet")], torch.float32, [1, 2])
    gpu = maker.on_gpus([torch.device("cuda", 0)])
    (cpu,) = maker.on_cpu(1, 1)
    asked = batch(whole(cuts(noise(1), "dense")))
    for lane in gpu:
        assert answers(lane, asked)[0] == pytest.approx(answers(cpu, asked)[0], abs=1e-3)


# What batches cost.


@dataclass
class Recorder:
    """A lane's function that notes what is run, and may do something meanwhile."""

    meanwhile: Callable[[], object] = lambda: None
    batches: list[Batch[Cuts]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def run(self, asked: Batch[Cuts]) -> list[Probabilities]:
        """Note a batch and take the time."""
        self.batches.append(asked)
        self.threads.add(threading.get_ident())
        self.meanwhile()
        return [np.zeros(3) for _ in asked.slices]

    @property
    def shapes(self) -> set[tuple[Key, int]]:
        """What was run, at least once."""
        return {(asked.key, asked.size) for asked in self.batches}


def lasting(seconds: float) -> Recorder:
    return Recorder(lambda: time.sleep(seconds))


def test_every_size_of_every_key_is_run_on_every_lane_and_timed() -> None:
    recorders = [Recorder(), Recorder()]
    made = [ClassifyingLane(recorder.run, number) for number, recorder in enumerate(recorders)]
    timed = lanes.costs(made, keys(2, (1, 2, 5))).seconds
    assert {*timed} == {Key(member, side) for member in (0, 1) for side in (CROP, DENSE)}
    assert all({*buckets} == {1, 2, 5} for buckets in timed.values())
    for recorder in recorders:
        assert recorder.shapes == {(key, size) for key in timed for size in (1, 2, 5)}
        assert all(asked.rows == asked.size for asked in recorder.batches)
        assert all(part.rows == 1 for asked in recorder.batches for part in asked.slices)


def test_a_lane_for_those_that_come_alone_is_warmed_for_its_sizes_and_no_other() -> None:
    ordinary, alone = Recorder(), Recorder()
    lanes.costs(
        [ClassifyingLane(ordinary.run), ClassifyingLane(alone.run, 1, alone=2)], keys(1, (1, 2, 4))
    )
    assert alone.shapes == {(key, size) for key in KEYS for size in (1, 2)}


def test_what_a_lone_batch_takes_is_nothing_to_the_costs() -> None:
    ordinary, alone = lasting(0.0), lasting(0.05)
    timed = lanes.costs(
        [ClassifyingLane(ordinary.run), ClassifyingLane(alone.run, 1, alone=1)], keys(1, (1,))
    ).seconds
    assert all(timed[key][1] < 0.05 for key in KEYS)


def test_a_batch_is_timed_with_all_devices_at_it() -> None:
    together = threading.Barrier(2)
    recorders = [Recorder(lambda: together.wait(PATIENCE)) for _ in range(2)]
    lanes.costs(
        [ClassifyingLane(recorder.run, n) for n, recorder in enumerate(recorders)], keys(1, (1,))
    )
    assert not together.broken


def test_a_size_for_which_there_is_no_memory_is_left_out_with_all_above_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = scarce(rows=2)
    timed = lanes.costs(
        [ClassifyingLane(run), ClassifyingLane(run, 1, alone=1)], keys(1, (1, 2, 4, 8))
    )
    assert all({*timed.seconds[key]} == {1, 2} for key in KEYS)
    assert [record.message for record in caplog.records] == [
        f"no memory for 4 views of {key.side} pixels at once" for key in KEYS
    ]


def test_a_device_without_memory_for_one_view_cannot_serve() -> None:
    with pytest.raises(OutOfMemory, match="no memory for this batch"):
        lanes.costs([ClassifyingLane(scarce(rows=0))], keys(1, (1, 2)))


def scarce(rows: int) -> Callable[[Batch[Cuts]], list[Probabilities]]:
    """Run as a lane does whose network needs too much memory for more than so many rows."""

    def run(batch: Batch[Cuts]) -> list[Probabilities]:
        with runtime.memory():
            torch.empty(2**50 if batch.rows > rows else 1)
        return [np.zeros(3)] * len(batch.slices)

    return run


def test_the_slowest_device_is_what_a_batch_costs() -> None:
    made = [ClassifyingLane(lasting(seconds).run, n) for n, seconds in enumerate((0.0, 0.03, 0.0))]
    timed = lanes.costs(made, keys(1, (1,))).seconds
    assert all(timed[key][1] >= 0.03 for key in KEYS)


def test_the_lanes_of_one_device_are_timed_one_after_the_other() -> None:
    turn = threading.Lock()

    def taking_turns() -> None:
        assert turn.acquire(blocking=False), "both lanes of one device ran"
        time.sleep(0.001)
        turn.release()

    recorders = [Recorder(taking_turns), Recorder(taking_turns)]
    lanes.costs([ClassifyingLane(recorder.run, 0) for recorder in recorders], keys(1, (1,)))
    assert all(recorder.shapes == {(key, 1) for key in KEYS} for recorder in recorders)


def test_the_threads_that_timed_have_ended() -> None:
    """GNU OpenMP would keep a pool for each, and be slow for it."""
    recorders = [Recorder(), Recorder()]
    lanes.costs(
        [ClassifyingLane(recorders[0].run), ClassifyingLane(recorders[1].run, 1, alone=1)],
        keys(1, (1,)),
    )
    alive = {thread.ident for thread in threading.enumerate()}
    for recorder in recorders:
        assert recorder.threads
        assert not recorder.threads & alive
