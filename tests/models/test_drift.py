"""References for drift, and the population stability index."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models import drift
from service.models.manifest import Bins

Count = st.integers(0, 10**6)
Pairs = st.lists(st.tuples(Count, Count), min_size=1, max_size=12)
Values = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.array)


@given(Pairs)
def test_psi_is_finite_symmetric_and_not_negative(pairs: list[tuple[int, int]]) -> None:
    one, other = zip(*pairs, strict=True)
    psi = drift.psi(one, other)
    assert np.isfinite(psi)
    assert psi >= 0
    assert psi == pytest.approx(drift.psi(other, one))


@given(Pairs, st.randoms())
def test_the_order_of_bins_does_not_matter(pairs: list[tuple[int, int]], random: Random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, other = (drift.psi(*zip(*each, strict=True)) for each in (pairs, shuffled))
    assert one == pytest.approx(other, abs=1e-9)


@given(Pairs)
def test_the_same_histogram_has_no_drift(pairs: list[tuple[int, int]]) -> None:
    counts = [count for count, _ in pairs]
    assert drift.psi(counts, counts) == 0


def test_psi_by_hand() -> None:
    expected = (0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5)
    assert drift.psi([50_000, 50_000], [30_000, 70_000]) == pytest.approx(expected, abs=1e-4)


@given(Values)
def test_bins_hold_every_value_and_none_is_much_fuller_than_a_tenth(values: np.ndarray) -> None:
    bins = drift.bins(values)
    assert len(bins.counts) <= drift.BINS
    assert sum(bins.counts) == len(values)
    numbers = [drift.bin_of(value, bins) for value in values]
    assert tuple(np.bincount(numbers, minlength=len(bins.counts))) == bins.counts


def test_distinct_values_are_in_deciles_and_equal_ones_in_one_bin() -> None:
    assert drift.bins(np.random.default_rng(0).permutation(100)).counts == (10,) * 10
    assert drift.bins(np.ones(100)) == Bins(edges=(), counts=(100,))
    assert drift.bins(np.array([0, 0, 1, 1, 1])) == Bins(edges=(0,), counts=(2, 3))


def test_without_drift_psi_is_below_the_alert_in_99_of_100_cases() -> None:
    """With the fewest reference images, for labels of any number of classes."""
    random = np.random.default_rng(0)
    for classes in (2, 10, 1000):
        likely = random.dirichlet(np.ones(classes))
        found = []
        for _ in range(400):
            before, now = (random.choice(classes, size, p=likely) for size in (100, 1000))
            bins = drift.bins(before)
            numbers = np.searchsorted(bins.edges, now)
            found.append(drift.psi(bins.counts, np.bincount(numbers, minlength=len(bins.counts))))
        assert np.quantile(found, 0.99) < 0.25, classes
        assert np.mean(found) < 0.12, classes


def test_a_reference_is_of_the_first_label_and_its_probability() -> None:
    likely = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    reference = drift.fit({"single": likely})["single"]
    assert reference.labels == Bins(edges=(0,), counts=(1, 2))
    assert reference.confidence == Bins(edges=(0.7, 0.8), counts=(1, 1, 1))
