"""When no more views of an image are needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.stopping_rule import LEAD, LeadRule, PairedRule

STOPS = (4, 8, 16, 32, 64, 144)

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(np.array)


@pytest.mark.parametrize(
    ("values", "is_sure"),
    [
        ([0.75, 0.25, 0.0], True),
        ([0.0, 0.25, 0.75], True),
        ([0.7, 0.3, 0.0], False),
        ([0.5, 0.5], False),
        ([1.0], True),  # there is no other label
    ],
)
def test_the_first_label_has_to_lead_the_second_by_half(
    values: list[float], *, is_sure: bool
) -> None:
    assert LEAD == 0.5
    assert LeadRule().is_sure(np.array(values)) is is_sure


@given(probabilities, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_lead_is_never_sure_earlier(
    values: np.ndarray, lead: float, larger: float
) -> None:
    small, large = sorted([lead, larger])
    if LeadRule(large).is_sure(values):
        assert LeadRule(small).is_sure(values)


@given(st.integers(1, 9), st.data())
def test_a_label_that_no_rest_can_overtake_is_the_label_of_all_views(
    stop: int, data: st.DataObject
) -> None:
    """With a lead of (n - stop) / stop or more, the mean of all n views has the same first."""
    views = data.draw(
        st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=10, max_size=10)
    )
    rows = np.array([np.array(row) / max(sum(row), 1e-9) for row in views])
    rule = LeadRule((len(rows) - stop) / stop + 1e-9)
    seen = rows[:stop].mean(axis=0)
    if rule.is_sure(seen):
        assert rows.mean(axis=0).argmax() == seen.argmax()


# The paired rule.

values = st.floats(0, 1, width=32)
errors = st.floats(0.1, 10)


@st.composite
def members(draw: st.DrawFn, classes: int = 3) -> list[np.ndarray]:
    """Probabilities by view of one or several members, (views, classes)."""
    rows = st.lists(st.lists(values, min_size=classes, max_size=classes), min_size=2, max_size=9)
    return [np.array(draw(rows)) for _ in range(draw(st.integers(1, 3)))]


def is_sure(rule: PairedRule, views: list[np.ndarray]) -> bool:
    return rule.is_sure(np.mean([rows.mean(0) for rows in views], axis=0), views)


def looked_at(rule: PairedRule, views: np.ndarray) -> int:
    """Return after how many of 144 views the rule stops."""
    return next(stop for stop in STOPS if stop == 144 or is_sure(rule, [views[:stop]]))


@given(members(), errors)
def test_a_tie_is_never_sure(views: list[np.ndarray], error: float) -> None:
    """The first label is there twice."""
    first = int(np.mean([rows.mean(0) for rows in views], axis=0).argmax())
    tied = [np.column_stack([rows, rows[:, first]]) for rows in views]
    assert not is_sure(PairedRule(error), tied)


@given(st.lists(values, min_size=2, max_size=5, unique=True), st.integers(1, 3), errors)
def test_views_that_are_the_same_stop_at_the_first(
    view: list[float], count: int, error: float
) -> None:
    assert is_sure(PairedRule(error), [np.tile(view, (4, 1))] * count)


@given(members(), errors, errors)
def test_more_standard_errors_are_never_sure_earlier(
    views: list[np.ndarray], one: float, other: float
) -> None:
    if is_sure(PairedRule(max(one, other)), views):
        assert is_sure(PairedRule(min(one, other)), views)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2), errors, errors)
def test_more_standard_errors_never_look_at_fewer_views(
    seed: int, lead: float, one: float, other: float
) -> None:
    first = np.random.default_rng(seed).normal(0.5 + lead / 2, 0.1, 144)
    views = np.column_stack([first, 1 - first])
    few, many = (looked_at(PairedRule(error), views) for error in sorted((one, other)))
    assert few <= many


@given(members())
def test_members_that_are_all_the_same_are_as_sure_as_twice_the_views(
    views: list[np.ndarray],
) -> None:
    """Standard errors of independent means: by the root of two smaller, for two of them."""
    rows = views[0]
    differences = rows[:, 0] - rows[:, 1]
    error = differences.std(ddof=1) / np.sqrt(len(rows))
    ratio = differences.mean() / max(error, 1e-9)
    if 0.2 < ratio < 1e6 and rows[:, 2].mean() < rows[:, 1].mean():
        for count in (1, 2):
            exact = float(ratio * np.sqrt(count))
            assert is_sure(PairedRule(exact * 0.999), [rows] * count)
            assert not is_sure(PairedRule(exact * 1.001), [rows] * count)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([[[0.9, 0.1]]], False),  # of one view nothing is known
        ([[[1.0]]], True),  # there is no other label
        ([[[0.6, 0.4], [0.8, 0.2]], [[0.9, 0.1]]], False),
        ([[[0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.7, 0.3]]], True),  # 0.4, by 0.08
        ([[[0.6, 0.4], [1.0, 0.0], [0.2, 0.8], [1.0, 0.0]]], False),  # 0.4, by 0.38
    ],
)
def test_the_first_label_has_to_lead_by_three_standard_errors(
    views: list[list[list[float]]], *, expected: bool
) -> None:
    assert is_sure(PairedRule(), [np.array(rows) for rows in views]) is expected
