"""Admission and retry times: no clock, no event loop, no threads."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduling.admission import (
    Admission,
    Decoders,
    Headroom,
    QueueLoad,
    RetrySlot,
    SafetyFactor,
    evaluate,
)
from service.scheduling.cost_model import Buckets, CostModel, Key

A, B = Key(0, 224), Key(1, 256)
# Like a device: a batch costs something, and each row a little more. Whole numbers add up exactly.
MEASURED = {1: 5, 2: 6, 4: 8, 8: 12, 16: 20}
COSTS = CostModel(dict.fromkeys((A, B), Buckets(MEASURED)))


def test_work_is_admitted_if_it_would_be_done_in_time_after_everything_else() -> None:
    load = QueueLoad(running=7, rows={A: 16, B: 1})
    in_hand = 20 + 20  # a largest run of each key
    admission = evaluate(load, {B: 1}, COSTS, seconds=7 + 20 + 6 + in_hand)
    assert admission.admitted
    assert not evaluate(load, {B: 1}, COSTS, seconds=7 + 20 + 6 + in_hand - 1).admitted
    assert admission.possible
    assert admission.done_in == 7 + 20 + 6
    assert admission.alone == 5


def test_refused_work_has_a_retry_time() -> None:
    load = QueueLoad(running=7, rows={A: 16})
    admission = evaluate(load, {A: 16}, COSTS, seconds=30)
    assert not admission.admitted
    assert admission.possible
    assert admission.retry_after == 7 + 20 + 20 + 20 - 30
    later = replace(load, running=load.running - 7, rows={A: 6})  # so many seconds later
    assert evaluate(later, {A: 16}, COSTS, seconds=30).retry_after < admission.retry_after


def test_work_that_idle_devices_could_not_do_in_time_is_never_admitted() -> None:
    admission = evaluate(QueueLoad(0, {}), {A: 16, B: 1}, COSTS, seconds=24)
    assert not admission.admitted
    assert not admission.possible
    assert admission.retry_after == math.inf


def test_devices_share_the_load() -> None:
    # Two thirds of a whole batch may still be to come when an even share would be done.
    assert QueueLoad(10, {A: 16}, devices=3).seconds(COSTS) == pytest.approx(10 + 20 * 2 / 3)
    load = QueueLoad(10, {A: 16}, devices=2)
    assert evaluate(load, {A: 16}, COSTS, seconds=25 + 10 + 20).admitted
    assert not evaluate(load, {A: 16}, COSTS, seconds=24 + 10 + 20).admitted


def test_idle_devices_share_a_job_evenly() -> None:
    assert evaluate(QueueLoad(0, {}, devices=2), {A: 32}, COSTS, seconds=20).admitted
    assert not evaluate(QueueLoad(0, {}, devices=2), {A: 32}, COSTS, seconds=19).possible


@pytest.mark.parametrize(
    "load",
    [QueueLoad(0, {A: 0}), QueueLoad(0, {}, headroom=50), QueueLoad(0, {}, safety_factor=4.0)],
)
def test_work_alone_needs_no_reserve_headroom_or_safety_factor(load: QueueLoad) -> None:
    assert evaluate(load, {A: 16}, COSTS, seconds=20).admitted


@settings(deadline=None, derandomize=True)
@given(
    running=st.integers(0, 300),
    rows=st.integers(0, 50),
    wanted=st.integers(1, 20),
    seconds=st.integers(0, 100),
)
def test_retry_after_is_truthful(running: int, rows: int, wanted: int, seconds: int) -> None:
    """When so many seconds of the work are done the same is admitted, and not before."""
    load = QueueLoad(running, {A: rows})
    wait = evaluate(load, {A: wanted}, COSTS, seconds).retry_after
    if 0 < wait <= running:
        assert evaluate(replace(load, running=running - wait), {A: wanted}, COSTS, seconds).admitted
        sooner = replace(load, running=running - wait + 1)
        assert not evaluate(sooner, {A: wanted}, COSTS, seconds).admitted


def test_one_batch_that_hung_is_no_reason_to_refuse_for_ever() -> None:
    """Thirty seconds, seen once, must not be what is kept in hand from then on."""
    costs = CostModel({A: Buckets({1: 0.01, 8: 0.04})}).observed(A, 8, 30)
    assert costs.of(A, 8) < 0.1
    assert evaluate(QueueLoad(0.01, {A: 1}), {A: 1}, costs, seconds=1).admitted


def test_a_bucket_too_slow_to_be_run_is_tried_again() -> None:
    costs = CostModel({A: Buckets({1: 0.01, 8: 0.04})})
    for _ in range(10):
        costs = costs.observed(A, 8, 30)
    assert costs.seconds(A, 8) > 8 * 0.01  # so that it is not run
    assert evaluate(QueueLoad(0.01, {A: 1}), {A: 1}, costs, seconds=1).admitted  # in smaller ones
    for _ in range(200):
        costs = costs.observed(A, 1, 0.01)
    assert costs.seconds(A, 8) < 8 * 0.01


# Images that wait to be decoded.


def test_images_wait_for_those_before_them_if_there_is_no_thread_for_each() -> None:
    decoders = Decoders(2, seconds=3.0)
    assert decoders.decode_wait(2) == 0
    assert decoders.decode_wait(12) == 10 * 3 / 2
    unknown = Decoders(2)
    assert unknown.decode_wait(100) == 0
    assert unknown.observed(3.0) == decoders


def test_the_decode_time_is_a_moving_average() -> None:
    decoders = Decoders(1, seconds=1.0)
    assert 1 < decoders.observed(2.0).seconds < 1.2
    for _ in range(100):
        decoders = decoders.observed(2.0)
    assert decoders.seconds == pytest.approx(2.0, rel=1e-3)


def test_images_that_wait_for_decoding_have_less_time_left() -> None:
    load = QueueLoad(running=7, rows={A: 16})
    needed = evaluate(load, {A: 1}, COSTS, seconds=1000).done_in
    behind = replace(load, decode_wait=30)
    assert evaluate(behind, {A: 1}, COSTS, seconds=1000).done_in == needed + 30
    assert evaluate(load, {A: 1}, COSTS, seconds=60).admitted
    assert evaluate(behind, {A: 1}, COSTS, seconds=60).retry_after == needed + 30 + 20 - 60


def test_work_that_waits_for_a_decoder_is_not_idle() -> None:
    """The client may have disconnected while the thread still decodes its image."""
    assert evaluate(QueueLoad(0, {}), {A: 1}, COSTS, seconds=60).idle
    behind = evaluate(QueueLoad(0, {}, decode_wait=100), {A: 1}, COSTS, seconds=60)
    assert not behind.idle
    assert not behind.admitted


def test_work_that_waits_for_decoding_is_refused_for_now_only() -> None:
    assert evaluate(QueueLoad(0, {A: 1}, decode_wait=1000), {A: 1}, COSTS, seconds=60).possible


# Headroom for long jobs.


def test_small_jobs_leave_room_for_the_largest_while_they_hold_most() -> None:
    small = QueueLoad(running=0, rows={A: 16})
    least = evaluate(small, {A: 1}, COSTS, seconds=1000).done_in + 20  # with what is in hand
    assert evaluate(small, {A: 1}, COSTS, seconds=least).admitted
    refused = evaluate(replace(small, headroom=12), {A: 1}, COSTS, seconds=least)
    assert refused.retry_after == 12 - 5
    assert evaluate(replace(small, headroom=12), {A: 1}, COSTS, seconds=least + 12 - 5).admitted


def test_a_long_job_is_admitted_when_a_small_one_is() -> None:
    """Neither can fill what the other needs: they are refused in the same proportion."""
    load = QueueLoad(running=0, rows={A: 16})
    long = {A: 64}
    room = evaluate(load, long, COSTS, seconds=1000).alone
    load = replace(load, headroom=room, safety_factor=1.5)
    for seconds in range(200):
        assert (
            evaluate(load, {A: 8}, COSTS, seconds).admitted
            == evaluate(load, long, COSTS, seconds).admitted
            or seconds < 2 * room  # half of its time is the most that a job leaves free
        )


def test_small_jobs_need_not_leave_room_once_long_ones_hold_most() -> None:
    load = QueueLoad(running=0, rows={A: 64, B: 1}, long={A: 64})
    assert not load.is_mostly_short(COSTS)
    least = evaluate(load, {A: 1}, COSTS, seconds=1000).done_in + 20 + 20
    assert evaluate(replace(load, headroom=50), {A: 1}, COSTS, seconds=least).admitted


def test_room_takes_no_more_than_half_of_the_time_of_a_small_job() -> None:
    load = QueueLoad(running=0, rows={A: 1}, headroom=math.inf)
    assert evaluate(load, {A: 1}, COSTS, seconds=100).admitted


def test_headroom_halves_without_long_jobs() -> None:
    room = Headroom().requested(8.0, now=100.0)
    assert room.left(100.0) == 8
    assert room.left(110.0) == 4
    assert room.requested(3.0, now=110.0) is room
    assert room.requested(5.0, now=110.0).left(110.0) == 5


def test_whether_a_job_is_long_depends_on_the_largest_recent_one() -> None:
    room = Headroom(8.0, 0.0)
    assert not room.is_long(3.0, now=0.0)
    assert room.is_long(4.0, now=0.0)
    assert room.is_long(3.0, now=10.0)


# The safety factor.


def test_late_work_raises_the_safety_factor_until_work_is_in_time() -> None:
    safety = SafetyFactor()
    for _ in range(100):
        safety = safety.observed(promised=2.0, took=3.0)
    assert safety.factor == pytest.approx(1.5, rel=1e-3)
    risen = safety.factor
    safety = safety.observed(promised=2.0, took=1.0)
    assert 1 < safety.factor < risen
    for _ in range(1000):
        safety = safety.observed(promised=2.0, took=1.0)
    assert safety.factor == pytest.approx(1.0, abs=1e-3)  # what is early is no reason for more


def test_one_hung_request_raises_the_safety_factor_little() -> None:
    assert SafetyFactor().observed(promised=2.0, took=1e9).factor < 1.5


def test_the_safety_factor_multiplies_what_is_predicted() -> None:
    load = QueueLoad(running=7, rows={A: 16})
    promised = evaluate(load, {A: 1}, COSTS, seconds=1000).promised
    unsafe = replace(load, safety_factor=2.0)
    assert evaluate(unsafe, {A: 1}, COSTS, seconds=2 * promised).admitted
    assert not evaluate(unsafe, {A: 1}, COSTS, seconds=2 * promised - 1).admitted


# Retry times.


def refused(retry_after: float, alone: float = 2.0) -> Admission:
    return Admission(alone, 0.0, 0.0, idle=False, retry_after=retry_after, retry_interval=alone)


def test_retry_times_begin_with_the_capacity_and_are_as_far_apart_as_the_jobs_take() -> None:
    slot, times = RetrySlot(), []
    for _ in range(5):
        slot = slot.following(refused(3.0), now=10.0)
        times.append(slot.at)
    assert times[0] == 13
    assert {later - sooner for sooner, later in pairwise(times)} == {2.0}
    assert slot.following(refused(3.0), now=100.0).at == 103  # those slots have passed


def test_a_retry_time_is_at_most_a_minute_later_than_possible() -> None:
    slot = RetrySlot()
    for _ in range(1000):
        slot = slot.following(refused(3.0), now=10.0)
        assert slot.at <= 10 + 3 + 60
