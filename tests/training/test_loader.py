"""Batches of images."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.imaging.crops import Pixels
from service.training.loader import AHEAD, batches, divide, order


def image(number: int) -> tuple[Pixels, int]:
    return np.full((2, 2, 3), number, np.uint8), number


def test_batches_come_in_order_and_whole() -> None:
    wanted = [[4, 1], [3, 2], [0]]
    made = list(batches(wanted, image, workers=2))
    assert [batch.targets.tolist() for batch in made] == wanted
    assert [batch.pixels[:, 0, 0, 0].tolist() for batch in made] == wanted
    assert (made[0].pixels.dtype, made[0].targets.dtype) == (torch.uint8, torch.int64)


def test_no_more_batches_are_read_ahead_than_allowed() -> None:
    begun = []

    def noted(number: int) -> tuple[Pixels, int]:
        assert threading.current_thread().name.startswith("read_")
        begun.append(number)
        return image(number)

    made = batches([[n] for n in range(20)], noted, workers=4)
    next(made)
    time.sleep(0.05)
    assert len(begun) <= AHEAD + 1
    made.close()
    assert len(begun) <= AHEAD + 1


def test_a_batch_has_the_time_it_was_waited_for() -> None:
    started = time.perf_counter()
    (batch,) = batches([[1]], image, workers=1)
    assert 0 < batch.waited <= time.perf_counter() - started


def test_an_image_that_fails_fails_its_batch_and_leaves_no_thread() -> None:
    def fails(number: int) -> tuple[Pixels, int]:
        if number == 3:
            raise OSError("gone")
        return image(number)

    made = batches([[1, 2], [3, 4]], fails, workers=2)
    assert next(made).targets.tolist() == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_an_order_is_another_for_each_epoch_and_seed_and_always_the_same() -> None:
    assert order(50, 0, 0) == order(50, 0, 0)
    assert sorted(order(50, 0, 0)) == list(range(50))
    assert len({tuple(order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4))
def test_processes_have_equal_parts_of_the_same_batches(count: int, batch: int, size: int) -> None:
    places: Sequence[int] = range(count)
    alone = divide(places, batch, rank=0, size=1)
    parts = [divide(places, batch, rank=rank, size=size) for rank in range(size)]
    together = [sorted(sum(shares, [])) for shares in zip(*parts, strict=True)]  # noqa: RUF017 - few
    assert together == [sorted(places) for places in alone]
    assert {len(places) for places in alone} == {min(batch, count)}
    assert len(alone) == max(1, count // batch)
