"""The simulated replica: queueing theory where there is a formula, and the policy's promises."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bench.capacity.replica_model import Replica, Seconds, Stages
from service.bench.capacity.simulator import Outcome, poisson, simulate
from service.scheduling.cost_model import Buckets, CostModel, Key

A, B = Key(0, 224), Key(1, 224)
# Like a device: a batch costs something, and each row a little more.
MEASURED = {1: 0.005, 2: 0.006, 4: 0.008, 8: 0.012, 16: 0.020}
NEVER = math.inf
QUICK = Seconds(0.001, 0.002)


def always(seconds: float) -> Seconds:
    return Seconds(seconds, seconds)


def same(seconds: Mapping[int, float]) -> dict[int, Seconds]:
    """Take as long beside others as alone."""
    return {size: always(one) for size, one in seconds.items()}


def computing(
    seconds: Mapping[int, float] = MEASURED, devices: int = 1, keys: Sequence[Key] = (A,)
) -> Replica:
    """Give a replica that computes for exactly as long as it promises, and does nothing else."""
    return Replica(
        tuple(range(devices)),
        CostModel(dict.fromkeys(keys, Buckets(seconds))),
        dict.fromkeys(keys, same(seconds)),
    )


def whole(rate: float, replica: Replica, rows: int = 1, deadline: float = NEVER) -> Outcome:
    return simulate(replica, {A: rows}, poisson(rate, 2000), deadline=deadline)


# Where there is a formula.


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_device_that_serves_one_by_one_waits_as_pollaczek_and_khinchine_say(
    load: float,
) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) service times."""
    outcome = simulate(computing({1: 1.0}), {A: 1}, poisson(load, 8000), deadline=NEVER)
    assert mean(outcome.latencies) - 1 == pytest.approx(load / (2 - 2 * load), rel=0.1)
    assert outcome.utilisation == pytest.approx((load, 0, 0), rel=0.02)


@pytest.mark.parametrize(("threads", "load"), [(1, 0.6), (3, 0.7)])
def test_decoding_alone_waits_as_its_threads_do(threads: int, load: float) -> None:
    """M/D/c against Cosmetatos' approximation of its mean wait, which is good to a few percent."""
    replica = replace(computing({1: 1e-6}), decode=always(1.0), decoders=threads)
    outcome = simulate(replica, {A: 1}, poisson(load * threads, 8000), deadline=NEVER)
    assert mean(outcome.latencies) - 1 == pytest.approx(_cosmetatos(threads, load), rel=0.1)
    assert outcome.utilisation.decoding == pytest.approx(load, rel=0.02)


def _cosmetatos(servers: int, load: float) -> float:
    offered = servers * load
    waiting = offered**servers / math.factorial(servers) / (1 - load)
    idle = sum(offered**k / math.factorial(k) for k in range(servers))
    random = waiting / (waiting + idle) / (servers - offered)  # M/M/c: Erlang's C
    even = (1 - load) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * load * servers)
    return random * (1 + even) / 2


def test_http_is_passed_twice_by_one_request_at_a_time() -> None:
    replica = replace(computing({1: 1e-6}), http=always(1.0))
    outcome = simulate(replica, {A: 1}, [0, 0], deadline=NEVER)
    assert outcome.latencies == pytest.approx([1.5, 2.0], abs=1e-5)


def test_a_request_alone_takes_its_stages_one_after_the_other() -> None:
    replica = replace(computing(), decode=Seconds(0.003, 0.009), decoders=2, http=QUICK)
    alone = simulate(replica, {A: 1}, [0], deadline=NEVER)
    assert alone.latencies == pytest.approx([0.003 + 0.001 + 0.005])


# What is at work beside.


def test_a_batch_takes_longer_beside_others_by_as_many_as_there_are() -> None:
    replica = replace(
        computing({1: 1.0}, devices=3), batches={A: {1: Seconds(1.0, 2.0)}}, slowed=0.5, decoders=2
    )
    found = [
        replica.batch_seconds(A, 1, Stages(computing, decoding, http))
        for computing, decoding, http in [(1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 2, 0), (3, 1, 1)]
    ]
    assert found == [1, 1.5, 2, 2, 4]


def test_decoding_and_http_take_longer_beside_others_by_as_many_as_there_are() -> None:
    apart = {"decode": Seconds(1, 4), "decoders": 2, "http": Seconds(0.1, 0.4)}
    replica = replace(computing(devices=2), **apart)
    busy = [Stages(0, 1, 0), Stages(1, 1, 0), Stages(2, 2, 0)]
    assert [replica.decode_seconds(one) for one in busy] == [1, 2, 4]
    assert replica.http_seconds(Stages(0, 0, 1)) == pytest.approx(0.1)
    assert replica.http_seconds(Stages(2, 1, 1)) == pytest.approx(0.4)


def test_a_batch_takes_as_long_as_beside_what_is_busy_when_it_begins() -> None:
    replica = replace(computing({1: 1.0}, devices=2), batches={A: {1: Seconds(1.0, 2.0)}})
    outcome = simulate(replica, {A: 1}, [0, 0.5], deadline=NEVER)
    assert outcome.latencies == pytest.approx([1.0, 2.0])


def test_two_executors_of_one_device_take_turns() -> None:
    replica = replace(computing({1: 1.0}), executors=(0, 0))
    outcome = simulate(replica, {A: 1}, [0, 0.5], deadline=NEVER)
    assert outcome.latencies == (1, 1.5)
    assert outcome.utilisation.computing == 1


def test_a_device_that_is_at_work_leaves_what_comes_to_an_idle_one() -> None:
    replica = replace(computing({1: 1.0}, devices=2), executors=(0, 0, 1, 1))
    assert simulate(replica, {A: 1}, [0, 0.5], deadline=NEVER).latencies == pytest.approx([1, 1])


# Batches, as the policy forms them.


def test_what_waits_is_taken_as_one_batch() -> None:
    outcome = simulate(computing(), {A: 1}, [0, 0.001, 0.002, 0.003], deadline=NEVER)
    assert outcome.latencies == pytest.approx([0.005, 0.012, 0.011, 0.010])  # one, then three


def test_a_request_is_answered_when_its_last_row_is() -> None:
    assert simulate(computing(), {A: 17}, [0], deadline=NEVER).latencies == (0.025,)
    both = computing(keys=(A, B))
    assert simulate(both, {A: 1, B: 2}, [0], deadline=NEVER).latencies == (0.011,)


def test_costs_are_kept_up_to_date_as_the_batcher_does() -> None:
    """A table that promises too much admits too many at first, and is soon put right."""
    boasting = replace(computing({1: 0.01}), batches={A: same({1: 0.1})})
    refused = [
        simulate(boasting, {A: 1}, poisson(100, count), deadline=0.5).refused / count
        for count in (20, 2000)
    ]
    assert refused[0] < 0.5 < refused[1]


# What becomes of requests.

tables = st.tuples(st.integers(1, 20), st.integers(1, 5)).map(
    lambda ab: {size: (ab[0] + size * ab[1]) / 1000 for size in (1, 2, 4, 8)}
)
replicas = st.builds(
    lambda seconds, devices, decode, http: replace(
        computing(seconds, devices),
        decode=Seconds(decode, 2 * decode),
        decoders=2,
        http=always(http),
    ),
    tables,
    st.integers(1, 3),
    st.floats(0, 0.01),
    st.floats(0, 0.005),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(replicas, st.integers(1, 20), st.floats(1, 500), st.floats(0.01, 2))
def test_every_request_is_answered_refused_or_late(
    replica: Replica, rows: int, rate: float, deadline: float
) -> None:
    outcome = simulate(replica, {A: rows}, poisson(rate, 100), deadline=deadline)
    assert outcome.arrived == 90  # the first are not counted
    assert all(0 <= share <= 1 + 1e-9 for share in outcome.utilisation)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(tables, st.integers(1, 3), st.integers(1, 20), st.floats(1, 500), st.floats(0.01, 2))
def test_no_admitted_request_is_late_where_a_batch_takes_what_it_should(
    seconds: Mapping[int, float], devices: int, rows: int, rate: float, deadline: float
) -> None:
    replica = computing(seconds, devices)
    outcome = simulate(replica, {A: rows}, poisson(rate, 100), deadline=deadline)
    assert outcome.late == 0
    assert all(latency <= deadline + 1e-9 for latency in outcome.latencies)


def test_a_request_that_is_too_late_when_a_batch_is_formed_counts_once() -> None:
    """Decoding, which admission knows nothing of, leaves no time for both members."""
    replica = replace(computing({1: 1.0}, keys=(A, B)), decode=always(3.0))
    outcome = simulate(replica, {A: 1, B: 1}, [0], deadline=3.5)
    assert (outcome.late, outcome.refused, outcome.latencies) == (1, 0, ())


def test_an_answer_after_the_deadline_is_late() -> None:
    replica = replace(computing({1: 1.0}), batches={A: same({1: 2.0})})
    assert simulate(replica, {A: 1}, [0], deadline=1.5).late == 1


def test_it_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    runs = [
        simulate(computing(), {A: 1}, poisson(100, 200, seed), deadline=1).latencies
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_more_requests_take_longer_and_keep_the_device_busier() -> None:
    outcomes = [whole(rate, computing()) for rate in (10, 100, 400)]
    for fewer, more in itertools.pairwise(outcomes):
        assert fewer.quantile(0.5) <= more.quantile(0.5)
        assert fewer.quantile(0.99) < more.quantile(0.99)
        assert fewer.utilisation.computing < more.utilisation.computing


def test_more_devices_refuse_fewer_and_answer_sooner() -> None:
    outcomes = [whole(1500, computing(devices=n), deadline=0.2) for n in (1, 2, 3)]
    for fewer, more in itertools.pairwise(outcomes):
        assert fewer.refused > more.refused or more.refused == 0
        assert fewer.quantile(0.99) > more.quantile(0.99)


# What is said of it.


def test_the_objective_is_of_all_who_came() -> None:
    outcome = Outcome((0.1, 0.2, 0.3), refused=1, late=1, utilisation=Stages(0, 0, 0))
    assert outcome.arrived == 5
    assert [outcome.within(seconds) for seconds in (0.05, 0.2, 1)] == [0, 0.4, 0.6]
    assert outcome.quantile(0.5) == pytest.approx(0.2)
    assert math.isnan(Outcome((), 1, 0, Stages(0, 0, 0)).quantile(0.5))


def test_arrivals_are_a_poisson_process() -> None:
    moments = [*poisson(50, 20_000)]
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert mean((gap * 50 - 1) ** 2 for gap in gaps) == pytest.approx(1, rel=0.05)


def test_a_replica_cannot_keep_up_with_less_than_its_slowest_stage_takes() -> None:
    replica = replace(computing(devices=2), decode=Seconds(0.004, 0.01), decoders=2, http=QUICK)
    assert replica.least({A: 10}) == pytest.approx(10 * 0.020 / 16 / 2)
    assert replica.least({A: 1}) == 0.002  # decoding
    assert replace(replica, http=always(0.003)).least({A: 1}) == 0.003
