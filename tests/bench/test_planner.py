"""How many replicas: the search, and where more of them stop helping."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_simulator import A, computing

from service.bench.capacity import planner
from service.bench.capacity.planner import HELPS, Plan, Prediction, Traffic, search, worthwhile
from service.bench.capacity.replica_model import Seconds

TRAFFIC = Traffic(rate=400, objective=0.05, deadline=1.0)
REPLICA = replace(computing({1: 0.010, 4: 0.016}), decode=Seconds(0.002, 0.004), decoders=2)


def predicted(replicas: int, busy: float, p99: float | None) -> Prediction:
    return Prediction(replicas, {"computing": busy, "http": 0.0}, p99, p99, 0.0, met=True)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_fewest_are_found_by_few_questions(enough: int, least: int) -> None:
    asked: list[int] = []

    def meets(count: int) -> bool:
        asked.append(count)
        return count >= enough

    assert search(meets, least, 10_000) == max(enough, least)
    assert len(asked) <= 2 * (1 + math.log2(max(enough, least) / least + 1)) + math.log2(least) + 2


def test_a_search_ends_where_no_number_will_do() -> None:
    asked: list[int] = []
    assert search(lambda count: bool(asked.append(count)), 3, 100) is None
    assert asked == [3, 6, 12, 24, 48, 96, 192]


def test_more_are_looked_at_until_they_hardly_help() -> None:
    """One by one, later one in ten; a p99 is compared where the replicas can keep up only."""
    found = {8: (1.0, 9.0), 9: (0.99, 9.0), 10: (0.9, 5.0), 11: (0.8, 4.0), 12: (0.7, 3.9)}
    assert [*worthwhile(lambda n: predicted(n, *found[n]), 8)] == [8, 9, 10, 11, 12]
    assert [*worthwhile(lambda n: predicted(n, 0.5, 1.0), 50)] == [50, 55]
    assert [*worthwhile(lambda n: predicted(n, 0.5, None), 50)] == [50, 55]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """What is planned for that traffic."""
    return planner.plan(REPLICA, {A: 1}, TRAFFIC)


@pytest.mark.slow
def test_the_fewest_that_meet_the_objective_are_needed(plan: Plan) -> None:
    by_count = {one.replicas: one for one in plan.predictions}
    assert plan.needed is not None
    assert by_count[plan.needed].met
    assert not by_count[plan.needed - 1].met
    assert [*by_count] == sorted(by_count)
    assert all(one.met == (one.replicas >= plan.needed) for one in plan.predictions)
    assert plan.alone == pytest.approx(0.012)
    p99s = [one.p99 for one in plan.predictions if one.p99]
    assert p99s == sorted(p99s, reverse=True)
    assert min(p99s) >= plan.alone


def test_beyond_what_is_enough_the_99th_percentile_hardly_falls(plan: Plan) -> None:
    before, enough, more = plan.predictions[-3:]
    assert enough.replicas == plan.enough
    assert before.p99
    assert enough.p99
    assert more.p99
    assert more.p99 > (1 - HELPS) * enough.p99
    assert enough.p99 <= (1 - HELPS) * before.p99


def test_a_replica_that_keeps_up_alone_is_all_that_is_needed() -> None:
    plan = planner.plan(REPLICA, {A: 1}, replace(TRAFFIC, rate=1))
    assert (plan.needed, plan.predictions[0].replicas) == (1, 1)
