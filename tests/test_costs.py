"""What batches cost, as measured and as observed."""

import pytest

from service.costs import Costs, Key

A, B = Key(0, 224), Key(1, 256)
# Like a device: a batch costs something, and each row a little more. Whole numbers add up exactly.
MEASURED = {1: 5, 2: 6, 4: 8, 8: 12, 16: 20}
COSTS = Costs({A: MEASURED, B: MEASURED})


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        (0, 0),
        (1, 5),
        (3, 8),  # padded to four
        (7, 12),
        (16, 20),
        (17, 20 + 5),
        (144, 9 * 20),
    ],
)
def test_rows_cost_the_best_buckets_and_then_one_for_what_is_left(rows: int, seconds: int) -> None:
    assert COSTS.of(A, rows) == seconds


def test_the_best_bucket_is_the_one_measured_best_not_the_largest() -> None:
    costs = Costs({A: {1: 3, 4: 4, 16: 32}})
    assert costs.of(A, 16) == 4 * 4
    assert costs.largest(A) == 16


def test_what_is_left_goes_where_it_is_cheapest_even_if_that_is_a_larger_bucket() -> None:
    assert Costs({A: {1: 9, 2: 5, 4: 6}}).of(A, 1) == 5


def test_the_total_adds_up_each_key_on_its_own() -> None:
    assert COSTS.total({A: 1, B: 1}) == 5 + 5
    assert COSTS.total({A: 2}) == 6
    assert COSTS.total({}) == 0


def test_an_observation_moves_one_bucket_of_one_key_and_nothing_else() -> None:
    moved = COSTS.observed(A, 4, 18)
    assert moved.seconds == {A: {**MEASURED, 4: 11}, B: MEASURED}
    assert COSTS.seconds[A][4] == 8  # values are frozen


def test_what_is_predicted_rises_quickly_and_falls_slowly() -> None:
    risen = COSTS.observed(A, 4, 18).of(A, 4) - 8
    fallen = 8 - COSTS.observed(A, 4, -2).of(A, 4)
    assert risen > 5 * fallen > 0


def test_observations_converge_on_what_a_bucket_takes_now() -> None:
    costs = COSTS
    for _ in range(500):
        costs = costs.observed(A, 1, 1.0)
    assert costs.of(A, 1) == pytest.approx(1.0)


def test_a_bucket_that_is_not_run_does_not_become_quicker_than_it_was_at_first() -> None:
    costs = COSTS
    for _ in range(100):
        costs = costs.observed(A, 1, 0.1)
    assert {size: costs.seconds[A][size] for size in MEASURED if size > 1} == {
        size: seconds for size, seconds in MEASURED.items() if size > 1
    }


def test_a_size_that_is_too_large_is_forgotten_with_all_above_it() -> None:
    fewer = COSTS.below(A, 8)
    assert fewer.seconds == {A: {1: 5, 2: 6, 4: 8}, B: MEASURED}
    assert fewer.largest(A) == 4
    assert COSTS.largest(A) == 16


def test_the_smallest_size_is_kept() -> None:
    assert COSTS.below(A, 1).seconds[A] == {1: 5}


def test_what_a_forgotten_size_took_is_not_learnt() -> None:
    fewer = COSTS.below(A, 8)
    assert fewer.observed(A, 8, 1000.0) is fewer
    assert fewer.observed(A, 4, 18).seconds[A] == {1: 5, 2: 6, 4: 11}
