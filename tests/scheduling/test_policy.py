"""The batcher's decisions: what runs next, and who is refused. No clock, no loop, no threads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduling.admission import QueueLoad, evaluate
from service.scheduling.cost_model import Buckets, CostModel, Key, LinearCost
from service.scheduling.policy import (
    BatchPlan,
    Decision,
    FairShare,
    QueuedJob,
    Reason,
    form,
    remaining,
    rows_left,
)

A, B = Key(0, 224), Key(1, 256)
# Like a device: a batch costs something, and each row a little more. Whole numbers add up exactly.
MEASURED = {1: 5, 2: 6, 4: 8, 8: 12, 16: 20}
COSTS = CostModel(dict.fromkeys((A, B), Buckets(MEASURED)))
FAR = 1_000_000


def job(left: int = 1, deadline: float = FAR, key: Key = A, *, large: bool = False) -> QueuedJob:
    return QueuedJob(key, left, deadline, large)


def run(queue: Sequence[QueuedJob], costs: CostModel = COSTS, now: float = 0) -> BatchPlan:
    chosen = form(queue, costs, now).run
    assert chosen is not None
    return chosen


def test_rows_left_are_counted_by_key() -> None:
    assert rows_left([job(2), job(3, key=B), job(4)]) == {A: 6, B: 3}


# Which bucket.


@pytest.mark.parametrize(
    ("rows", "measured", "size"),
    [
        (1, MEASURED, 1),
        (3, MEASURED, 4),  # three in a bucket of four are quicker served than two in one of two
        (7, MEASURED, 8),
        (9, MEASURED, 8),  # but nine in a bucket of sixteen are not than eight in one of eight
        (16, MEASURED, 16),
        (100, MEASURED, 16),
        (8, {4: 4, 8: 8}, 4),  # the smaller of equally quick ones
        (16, {8: 8, 16: 100}, 8),
    ],
)
def test_the_bucket_is_the_one_that_serves_most_rows_a_second(
    rows: int, measured: dict[int, float], size: int
) -> None:
    assert run([job()] * rows, CostModel({A: Buckets(measured)})).size == size


@pytest.mark.parametrize(
    ("queue", "size", "takes", "reason"),
    [
        ([job(10), job(10)], 16, ((0, 10), (1, 6)), "full"),
        ([job(2), job(1)], 4, ((0, 2), (1, 1)), "drained"),
        ([job(deadline=6), *[job()] * 15], 2, ((0, 1), (1, 1)), "deadline"),
    ],
)
def test_a_batch_has_a_reason_for_its_size(
    queue: list[QueuedJob], size: int, takes: tuple[tuple[int, int], ...], reason: Reason
) -> None:
    chosen = run(queue)
    assert chosen == BatchPlan(A, size, takes, reason)
    assert chosen.rows == sum(rows for _, rows in takes)


def test_a_bucket_that_just_meets_the_first_deadline_is_allowed() -> None:
    assert run([job(deadline=20), *[job()] * 15]).size == 16
    assert run([job(deadline=19), *[job()] * 15]).size == 8


# Devices that are free together.


def shared(rows: int, free: int) -> BatchPlan:
    chosen = form([job()] * rows, COSTS, 0, free=free).run
    assert chosen is not None
    return chosen


@pytest.mark.parametrize(
    ("rows", "free", "size", "taken"),
    [
        (16, 1, 16, 16),
        (16, 2, 8, 8),
        (16, 4, 4, 4),
        (100, 2, 16, 16),
        (6, 2, 4, 4),  # a share of three is padded for one device, so a fourth comes along
        (3, 4, 1, 1),
        (1, 8, 1, 1),
    ],
)
def test_a_device_takes_its_share_and_leaves_theirs_to_the_others(
    rows: int, free: int, size: int, taken: int
) -> None:
    chosen = shared(rows, free)
    assert (chosen.size, chosen.rows) == (size, taken)


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        # The share is of the rows that may be in one batch,
        ([*[job()] * 4, *[job(key=B)] * 12], BatchPlan(A, 2, ((0, 1), (1, 1)), "drained")),
        # is taken in order of deadlines,
        ([job(3, 100), job(9, 200), job(4, 300)], BatchPlan(A, 8, ((0, 3), (1, 5)), "drained")),
        # and is done by the first deadline.
        ([job(deadline=6), *[job()] * 31], BatchPlan(A, 2, ((0, 1), (1, 1)), "deadline")),
    ],
)
def test_a_share_is_formed_as_a_whole_batch_is(queue: list[QueuedJob], expected: BatchPlan) -> None:
    assert form(queue, COSTS, 0, free=2).run == expected


@given(st.integers(1, 8), st.integers(0, 60))
@settings(deadline=None, derandomize=True)
def test_no_free_device_goes_without_where_there_is_a_row_for_each(free: int, more: int) -> None:
    """One after the other, each finding fewer free than the one before."""
    left = free + more
    for still_free in range(free, 0, -1):
        taken = shared(left, still_free).rows
        assert taken >= 1
        left -= taken


# Whose rows.


def test_an_empty_queue_runs_nothing() -> None:
    assert form([], COSTS, 0) == Decision((), None)


def test_rows_are_taken_in_order_of_deadlines() -> None:
    assert run([job(7, 100), job(7, 200), job(7, 300)]).takes == ((0, 7), (1, 7), (2, 2))


def test_rows_of_another_key_wait_for_their_own_batch() -> None:
    queue = [job(3), job(3, key=B), job(1)]
    assert run(queue) == BatchPlan(A, 4, ((0, 3), (2, 1)), "drained")
    assert run(queue[1:]) == BatchPlan(B, 4, ((0, 3),), "drained")


def test_a_job_that_can_no_longer_be_in_time_is_dropped_and_costs_no_room() -> None:
    decision = form([job(1, deadline=104), job(2, deadline=200)], COSTS, now=100)
    assert decision == Decision((0,), BatchPlan(A, 2, ((1, 2),), "drained"))
    assert form([job(1, deadline=105)], COSTS, now=100).late == ()  # just in time


def test_when_all_are_late_all_are_dropped_and_nothing_runs() -> None:
    assert form([job(1, 1), job(1, 2, B)], COSTS, now=0) == Decision((0, 1), None)


def test_a_late_job_of_another_key_or_behind_a_full_batch_is_found_later() -> None:
    assert form([job(), job(deadline=1, key=B)], COSTS, now=0).late == ()
    assert form([job(16), job(deadline=1)], COSTS, now=0).late == ()


# Large jobs yield.


def test_a_large_job_lets_other_keys_pass_too() -> None:
    assert run([job(144, 500, large=True), job(1, 600, B)]) == BatchPlan(B, 1, ((1, 1),), "drained")


def test_a_large_job_yields_until_being_served_last_would_make_it_late() -> None:
    all_of_it = COSTS.of(A, 145)
    small = job(1, 600)
    assert run([job(144, all_of_it, large=True), small]).takes[0] == (1, 1)
    assert run([job(144, all_of_it - 1, large=True), small]).takes == ((0, 16),)


@pytest.mark.parametrize(
    ("queue", "takes"),
    [
        ([job(144, 500, large=True), job(1, 600)], ((1, 1), (0, 15))),
        ([job(1, 500, large=True), job(16, 600)], ((1, 16),)),  # what is left of it yields, too
        ([job(16, 500), job(1, 600)], ((0, 16),)),  # it fits one batch
        ([job(20, 500, large=True), job(20, 600, large=True)], ((0, 16),)),  # by deadline
        # The first has no time for that:
        ([job(32, 45, large=True), job(32, 900, large=True), job(1, 950)], ((0, 16),)),
    ],
)
def test_only_large_jobs_with_time_let_later_deadlines_pass(
    queue: list[QueuedJob], takes: tuple[tuple[int, int], ...]
) -> None:
    assert run(queue).takes == takes


# What is left of what runs.


@pytest.mark.parametrize(("elapsed", "seconds"), [(0, 10), (4, 6), (10, 0), (13, 3)])
def test_an_overdue_batch_is_expected_to_take_as_long_again(elapsed: int, seconds: int) -> None:
    assert remaining(10, elapsed) == seconds


# Whatever is queued.

buckets = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 40), min_size=1)
lines = st.builds(
    LinearCost, st.integers(0, 10), st.integers(0, 5), st.integers(1, 16), st.integers(1, 4)
)
curves = st.one_of(st.builds(Buckets, buckets), lines)
any_costs = st.builds(lambda a, b: CostModel({A: a, B: b}), curves, curves)
waiting = st.builds(
    QueuedJob,
    key=st.sampled_from([A, B]),
    left=st.integers(1, 40),
    deadline=st.integers(0, 300),
    large=st.booleans(),
)
queues = st.lists(waiting, max_size=12).map(lambda jobs: sorted(jobs, key=attrgetter("deadline")))


@settings(deadline=None, derandomize=True)
@given(queues, any_costs, st.integers(0, 100), st.integers(1, 4))
def test_a_formation_is_sound(
    queue: list[QueuedJob], costs: CostModel, now: int, free: int
) -> None:
    decision = form(queue, costs, now, free=free)
    late = [costs.of(job.key, job.left) > job.deadline - now for job in queue]
    assert all(late[at] for at in decision.late)
    if decision.run is None:  # work-conserving: nothing runs only if nothing could be in time
        assert len(decision.late) == len(queue)
        return
    chosen = decision.run
    curve = costs.curves[chosen.key]
    sizes = range(1, curve.largest + 1) if isinstance(curve, LinearCost) else curve.sizes
    assert chosen.size in sizes
    assert 0 < chosen.rows <= chosen.size
    if isinstance(curve, LinearCost):
        assert chosen.rows == chosen.size  # nothing is padded
    assert {queue[at].key for at, _ in chosen.takes} == {chosen.key}
    assert all(0 < rows <= queue[at].left for at, rows in chosen.takes)
    assert len({at for at, _ in chosen.takes}) == len(chosen.takes)
    assert not any(late[at] for at, _ in chosen.takes)
    # The first of them, and so everybody with a later deadline, has its rows back in time.
    assert curve.seconds(chosen.size) <= queue[chosen.takes[0][0]].deadline - now
    if chosen.reason == "full":
        assert chosen.rows == chosen.size


@settings(deadline=None, derandomize=True)
@given(queues, any_costs, st.integers(0, 100), st.integers(1, 4))
def test_the_first_job_that_is_not_late_always_gets_on(
    queue: list[QueuedJob], costs: CostModel, now: int, free: int
) -> None:
    small = [replace(job, large=False) for job in queue]
    first = next(
        (at for at, job in enumerate(small) if costs.of(job.key, job.left) <= job.deadline - now),
        None,
    )
    chosen = form(small, costs, now, free=free).run
    assert (chosen.takes[0][0] if chosen else None) == first


# The promise.


@dataclass(frozen=True)
class Arrival:
    """A job that comes at `at` and must be done in `seconds`."""

    at: int
    key: Key
    rows: int
    seconds: int
    background: bool = False


@dataclass
class Simulation:
    """Devices that take exactly as long as their table says, ruled by `admit` and `form`."""

    costs: CostModel
    devices: int = 1
    shares: FairShare = field(default_factory=lambda: FairShare(0.25))
    now: float = 0
    busy_until: list[float] = field(default_factory=list)  # each device
    queue: list[tuple[QueuedJob, int]] = field(default_factory=list)  # in order, with who it is
    bulk_asked: float = -math.inf  # when it last was
    admitted: dict[int, float] = field(default_factory=dict)  # deadlines
    ends: dict[int, float] = field(default_factory=dict)  # of the batches that each was in
    done: dict[int, float] = field(default_factory=dict)  # when
    dropped: dict[int, float] = field(default_factory=dict)  # when
    batches: list[set[int]] = field(default_factory=list)  # who was in each
    batches_before: dict[int, int] = field(default_factory=dict)  # begun when each came

    def play(self, arrivals: Sequence[Arrival]) -> "Simulation":
        """Let them come, work until all is done or given up, and say what became of it."""
        self.busy_until = [0] * self.devices
        for who, arrival in enumerate(sorted(arrivals, key=attrgetter("at"))):
            self._work(until=arrival.at)
            self._arrive(who, arrival)
        self._work(until=math.inf)
        assert self.admitted.keys() == self.done.keys() | self.dropped.keys()
        return self

    def _arrive(self, who: int, arrival: Arrival) -> None:
        self.now = arrival.at
        self.batches_before[who] = len(self.batches)
        running = sum(max(0, until - self.now) for until in self.busy_until)
        rows, background = (
            rows_left(job for job, _ in self.queue if job.background == is_background)
            for is_background in (False, True)
        )
        if arrival.background:
            self.bulk_asked = self.now
        shared = any(background.values()) or self.now - self.bulk_asked < 100
        load = QueueLoad(
            running,
            rows,
            self.devices,
            background=background,
            share=self.shares.background,
            shared=shared,
        )
        wanted = {arrival.key: arrival.rows}
        if evaluate(
            load, wanted, self.costs, arrival.seconds, background=arrival.background
        ).admitted:
            deadline = self.admitted[who] = self.now + arrival.seconds
            large = arrival.rows > self.costs.largest(arrival.key)
            waiting = QueuedJob(
                arrival.key,
                arrival.rows,
                deadline,
                large,
                arrival.background,
                promised_full_share=not (shared or arrival.background),
            )
            self.queue.append((waiting, who))
            self.queue.sort(key=lambda entry: (entry[0].deadline, entry[1]))

    def _work(self, until: float) -> None:
        """Start all batches that begin before `until`: who comes then finds the device taken."""
        while self.queue and max(self.now, min(self.busy_until)) < until:
            self.now = max(self.now, min(self.busy_until))
            free = sum(end <= self.now for end in self.busy_until)
            jobs = [job for job, _ in self.queue]
            running = sum(max(0, until - self.now) for until in self.busy_until)
            decision = form(
                jobs,
                self.costs,
                self.now,
                free=free,
                devices=self.devices,
                running=running,
                background_first=self.shares.is_background,
            )
            if run := decision.run:
                background = jobs[run.takes[0][0]].background
                self.shares = self.shares.took(
                    self.costs.seconds(run.key, run.size),
                    background=background,
                    others=any(job.background != background for job in jobs),
                )
            self._start(decision)

    def _start(self, decision: Decision) -> None:
        self.dropped |= {self.queue[at][1]: self.now for at in decision.late}
        takes = dict(decision.run.takes) if decision.run else {}
        end = self.now
        if decision.run:
            end += self.costs.seconds(decision.run.key, decision.run.size)
            self.busy_until[self.busy_until.index(min(self.busy_until))] = end
            self.batches.append({self.queue[at][1] for at in takes})
        queue, self.queue = self.queue, []
        for at, (job, who) in enumerate(queue):
            left = job.left - takes.get(at, 0)
            if at in takes:  # it is done when the last of its batches is
                self.ends[who] = max(end, self.ends.get(who, end))
            if not left:
                self.done[who] = self.ends[who]
            elif at not in decision.late:
                self.queue.append((replace(job, left=left), who))


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 120),
        key=st.sampled_from([A, B]),
        rows=st.integers(1, 40),
        seconds=st.integers(1, 250),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrivals, any_costs, st.integers(1, 3))
def test_no_job_finishes_late_and_dropped_jobs_fail_by_their_deadline(
    arrivals: list[Arrival], costs: CostModel, devices: int
) -> None:
    """What holds for every table: an admitted job ends by its deadline, with an answer or without.

    The bound is exact, not "up to one batch": a running batch is part of the load at admission,
    a batch is never longer than the first of its jobs has time, and the others have more; a
    batch that large jobs yield to is never longer than all the work that waits, for which they
    have time.
    """
    end = Simulation(costs, devices).play(arrivals)
    for who, when in (end.done | end.dropped).items():
        assert when <= end.admitted[who]


# Tables by which larger batches cost more, but less for each row: those that machines measure.
growing = st.tuples(st.integers(1, 20), st.integers(1, 5)).flatmap(
    lambda ab: st.sampled_from(
        [Buckets({size: ab[0] + size * ab[1] for size in (1, 2, 4, 8, 16)}), LinearCost(*ab, 16)]
    )
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    arrivals,
    st.builds(lambda a, b: CostModel({A: a, B: b}), growing, growing),
    st.integers(1, 4),
)
def test_admitted_jobs_are_done_in_time(
    arrivals: list[Arrival], costs: CostModel, devices: int
) -> None:
    """The promise, to the letter, on devices that cost what they were measured to."""
    end = Simulation(costs, devices).play(arrivals)
    assert end.dropped == {}
    assert all(when <= end.admitted[who] for who, when in end.done.items())


@settings(deadline=None, derandomize=True)
@given(
    total=st.integers(17, 200),
    smalls=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    key=st.sampled_from([A, B]),
    seconds=st.integers(400, 20_000),
)
def test_a_large_job_makes_a_small_one_wait_for_the_running_batch_only(
    total: int, smalls: list[int], key: Key, seconds: int
) -> None:
    """Whenever it comes, its deadline before or after: the next batch that is formed has it."""
    large = Arrival(0, A, total, 10_000)
    end = Simulation(COSTS).play([large, *(Arrival(at, key, 1, seconds) for at in smalls)])
    assert end.done.keys() == end.admitted.keys() == {*range(len(smalls) + 1)}
    for who, begun in list(end.batches_before.items())[1:]:
        assert who in end.batches[begun]
