"""When no more views of an image are needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.stopping_rule import LEAD, StoppingRule

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
    assert StoppingRule().is_sure(np.array(values)) is is_sure


@given(probabilities, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_lead_is_never_sure_earlier(
    values: np.ndarray, lead: float, larger: float
) -> None:
    small, large = sorted([lead, larger])
    if StoppingRule(large).is_sure(values):
        assert StoppingRule(small).is_sure(values)


@given(st.integers(1, 9), st.data())
def test_a_label_that_no_rest_can_overtake_is_the_label_of_all_views(
    stop: int, data: st.DataObject
) -> None:
    """With a lead of (n - stop) / stop or more, the mean of all n views has the same first."""
    views = data.draw(
        st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=10, max_size=10)
    )
    rows = np.array([np.array(row) / max(sum(row), 1e-9) for row in views])
    rule = StoppingRule((len(rows) - stop) / stop + 1e-9)
    seen = rows[:stop].mean(axis=0)
    if rule.is_sure(seen):
        assert rows.mean(axis=0).argmax() == seen.argmax()
