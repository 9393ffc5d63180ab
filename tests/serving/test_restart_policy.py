"""When a worker that ended is started again, and when it is given up."""

from itertools import accumulate

from service.serving.restart_policy import MAX_ENDS, Restarts


def after(*times: float) -> Restarts:
    return [*accumulate(times, Restarts.ended, initial=Restarts())][-1]


def test_it_is_started_again_later_each_time() -> None:
    delays = [after(*range(count)).delay for count in range(1, 7)]
    assert delays == [0.5, 1, 2, 4, 8, 8]


def test_ends_of_more_than_a_minute_ago_are_forgotten() -> None:
    assert after(0, 30, 61).ends == (30, 61)
    assert after(0, 100).delay == 0.5


def test_it_is_given_up_after_too_many_ends_in_a_minute() -> None:
    assert not after(*range(MAX_ENDS - 1)).are_too_many
    assert after(*range(MAX_ENDS)).are_too_many
    assert not after(*range(0, 20 * MAX_ENDS, 20)).are_too_many  # one every 20 seconds
