"""What batches cost, as measured and as observed: by a line on a CPU, by buckets on a GPU."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduling.cost_model import Buckets, CostCurve, CostModel, Key, LinearCost

A, B = Key(0, 224), Key(1, 256)
# Like a device: a batch costs something, and each row a little more. Whole numbers add up exactly.
MEASURED = {1: 5, 2: 6, 4: 8, 8: 12, 16: 20}
BUCKETS = Buckets(MEASURED)
LINE = LinearCost(4, 1, 16)
COSTS = CostModel({A: BUCKETS, B: LINE})


# A line.


def test_a_line_goes_through_what_was_measured() -> None:
    line = LinearCost.fit({1: 5.0, 4: 8.0, 16: 20.0}, 16)
    assert (line.fixed, line.each) == (pytest.approx(4), pytest.approx(1))
    assert line.largest == 16


def test_where_sizes_are_not_on_a_line_none_is_far_off_by_its_own_measure() -> None:
    """Fitted by absolute errors, the smallest would be far off for the largest's sake."""
    measured = {1: 1.0, 4: 5.0, 16: 16.0}
    line = LinearCost.fit(measured, 16)
    for size, seconds in measured.items():
        assert line.seconds(size) == pytest.approx(seconds, rel=0.25)


@pytest.mark.parametrize(
    ("measured", "fixed", "each"),
    [
        ({4: 8.0}, 0, 2),  # one size says nothing of what is fixed
        ({1: 5.0, 4: 5.0}, 5, 0),
        ({1: 5.0, 4: 4.0}, None, 0),  # larger batches do not cost less
        ({1: 1.0, 4: 8.0}, 0, None),  # nor does an empty one
    ],
)
def test_neither_part_of_a_line_is_below_zero(
    measured: dict[int, float], fixed: float | None, each: float | None
) -> None:
    line = LinearCost.fit(measured, 4)
    assert line.fixed >= 0
    assert line.each >= 0
    assert line.seconds(1) > 0
    for found, expected in ((line.fixed, fixed), (line.each, each)):
        assert expected is None or found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (16, [1, 4, 16]), (64, [1, 8, 64])]
)
def test_a_few_sizes_show_a_line(largest: int, sizes: list[int]) -> None:
    assert LinearCost(0.0, 1.0, largest).sizes == sizes


@pytest.mark.parametrize("rows", [1, 3, 13, 16])
def test_on_a_line_nothing_is_padded(rows: int) -> None:
    assert LINE.fitting(rows) == rows
    assert LINE.choose(rows) == rows
    assert LINE.total(rows) == LINE.seconds(rows) == 4 + rows


@pytest.mark.parametrize(("rows", "seconds"), [(0, 0), (17, 20 + 5), (32, 40), (45, 40 + 17)])
def test_more_rows_than_the_largest_batch_go_in_several(rows: int, seconds: float) -> None:
    assert LINE.total(rows) == seconds
    assert LINE.choose(max(rows, 16)) == 16


@pytest.mark.parametrize(
    ("within", "rows"), [(4.9, 0), (5.0, 1), (5.9, 1), (10.0, 6), (19.9, 15), (20.0, 16)]
)
def test_as_many_rows_are_chosen_as_are_done_in_time(within: float, rows: int) -> None:
    assert LINE.choose(40, within) == rows


@given(
    fixed=st.floats(0, 1),
    each=st.floats(1e-6, 1),
    slower=st.floats(0.1, 4),
    rows=st.integers(1, 64),
)
@settings(deadline=None, derandomize=True)
def test_what_is_predicted_to_be_in_time_is_chosen(
    fixed: float, each: float, slower: float, rows: int
) -> None:
    line = LinearCost(fixed, each, 64, slower)
    assert line.choose(64, line.seconds(rows)) in {rows, rows - 1 or 1}  # floats are rounded


def test_all_sizes_become_as_much_slower_as_one_was() -> None:
    slower = LINE.observed(4, 16)  # twice what was predicted
    ratio = slower.seconds(4) / LINE.seconds(4)
    assert 1 < ratio < 2
    assert slower.seconds(16) / LINE.seconds(16) == pytest.approx(ratio)
    assert slower.choose(40, 20.0) < LINE.choose(40, 20.0) == 16


def test_one_batch_that_took_very_long_says_no_more_than_one_that_took_long() -> None:
    assert LINE.observed(4, 1e9) == LINE.observed(4, 4 * 8)


def test_a_line_with_fewer_rows_costs_what_it_did() -> None:
    fewer = LINE.below(8)
    assert fewer.largest == 7
    assert fewer.seconds(7) == LINE.seconds(7)
    assert fewer.below(1).largest == 1
    assert LINE.below(100) == LINE


# Buckets.


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
    assert BUCKETS.total(rows) == seconds


def test_the_best_bucket_is_the_one_measured_best_not_the_largest() -> None:
    buckets = Buckets({1: 3, 4: 4, 16: 32})
    assert buckets.total(16) == 4 * 4
    assert buckets.choose(16) == 4


def test_what_is_left_goes_where_it_is_cheapest_even_if_that_is_a_larger_bucket() -> None:
    assert Buckets({1: 9, 2: 5, 4: 6}).total(1) == 5
    assert Buckets({1: 9, 2: 5, 4: 6}).fitting(1) == 2
    assert BUCKETS.fitting(5) == 8


@pytest.mark.parametrize(("within", "size"), [(4, 0), (5, 1), (11, 4), (20, 16)])
def test_the_largest_bucket_that_is_quick_enough_is_chosen(within: float, size: int) -> None:
    assert BUCKETS.choose(16, within) == size


def test_an_observation_moves_one_bucket_and_no_other() -> None:
    assert BUCKETS.observed(4, 18).measured == {**MEASURED, 4: 11}
    assert BUCKETS.measured == MEASURED  # values are frozen


def test_a_bucket_that_is_not_run_does_not_become_quicker_than_it_was_at_first() -> None:
    buckets = BUCKETS
    for _ in range(100):
        buckets = buckets.observed(1, 0.1)
    assert {**buckets.measured, 1: 5} == MEASURED


def test_a_bucket_that_is_not_run_forgets_that_it_was_slow() -> None:
    buckets = BUCKETS.observed(16, 80)
    slow = buckets.seconds(16)
    for _ in range(200):
        buckets = buckets.observed(1, 5)
    assert slow > 30
    assert buckets.seconds(16) == pytest.approx(20, rel=0.01)


def test_buckets_that_are_too_large_are_forgotten_but_never_the_smallest() -> None:
    fewer = BUCKETS.below(8)
    assert fewer.measured == {1: 5, 2: 6, 4: 8}
    assert fewer.below(1).measured == {1: 5}


def test_what_a_forgotten_size_took_is_not_learnt() -> None:
    fewer = BUCKETS.below(8)
    assert fewer.observed(8, 1000.0) is fewer
    assert fewer.observed(4, 18).measured == {1: 5, 2: 6, 4: 11}


# Both.


@pytest.mark.parametrize("curve", [LINE, BUCKETS], ids=["line", "buckets"])
def test_what_is_predicted_rises_quickly_and_falls_slowly(curve: CostCurve) -> None:
    predicted = curve.seconds(4)
    risen = curve.observed(4, 2 * predicted).seconds(4) - predicted
    fallen = predicted - curve.observed(4, 0.0).seconds(4)
    assert risen > 5 * fallen > 0


@pytest.mark.parametrize("curve", [LINE, BUCKETS], ids=["line", "buckets"])
@pytest.mark.parametrize("now", [1.0, 15.0])
def test_observations_converge_on_what_a_batch_takes_now(curve: CostCurve, now: float) -> None:
    for _ in range(500):
        curve = curve.observed(4, now)
    assert curve.seconds(4) == pytest.approx(now)


@pytest.mark.parametrize("curve", [LINE, BUCKETS], ids=["line", "buckets"])
def test_the_largest_batch_and_the_rate_are_those_of_the_curve(curve: CostCurve) -> None:
    costs = CostModel({A: curve})
    assert costs.largest(A) == 16
    assert costs.rate(A) == 16 / 20
    assert costs.seconds(A, 4) == 8


def test_the_total_adds_up_each_key_on_its_own() -> None:
    assert COSTS.total({A: 1, B: 3}) == 5 + 7
    assert COSTS.total({A: 3}) == 8
    assert COSTS.total({}) == 0


def test_the_longest_batch_is_that_of_one_key() -> None:
    assert COSTS.longest({A: 100, B: 3}) == 20
    assert COSTS.longest({A: 1, B: 3}) == 7
    assert COSTS.longest({}) == 0


@pytest.mark.parametrize("key", [A, B])
def test_what_is_learnt_of_one_key_changes_no_other(key: Key) -> None:
    (other,) = {A, B} - {key}
    for changed in (COSTS.observed(key, 4, 18), COSTS.below(key, 8)):
        assert changed.curves[other] == COSTS.curves[other]
        assert changed.curves[key] != COSTS.curves[key]
    assert COSTS.largest(key) == 16
