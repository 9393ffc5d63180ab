"""Priority, from the header to the batch: interactive first, and a share for background work."""

import asyncio
import math
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from operator import attrgetter

import pytest
from conftest import fake_backend
from test_batcher import Device, batcher_of, settle, truth
from test_classifier import RED, best
from test_classifier import serving as classifying
from test_classify import SETTINGS, parts, plain, service
from test_client import GOOD, misbehaving
from test_grpc import hosting, image
from test_metrics import value
from test_policy import COSTS, FAR, A, Arrival, B, Simulation, job

from service.api.middleware.security_headers import is_background
from service.client import Client
from service.errors import DeadlineExceeded, Overloaded, TooLarge
from service.imaging.image_decoder import Bounds
from service.scheduling.admission import QueueLoad, evaluate
from service.scheduling.cost_model import Buckets, CostModel
from service.scheduling.policy import FairShare, QueuedJob, form
from service.scheduling.types import JobSpec
from service.serving.types import Limits

QUARTER = 0.25
BACKGROUND = {"Priority": "u=7"}


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        ("u=7", True),
        ("i, u=7", True),
        ("u=7, i", True),
        ("u=7;foo=1", True),
        ("\tu=7 ", True),
        (None, False),
        ("", False),
        ("u=3", False),
        ("u=6, i", False),
        ("u=77", False),
        ("nu=7", False),
        ("u=7x", False),
        ("\xff,,=", False),
    ],
)
def test_urgency_seven_is_background_and_an_invalid_priority_is_ignored(
    priority: str | None, *, expected: bool
) -> None:
    assert is_background(priority) is expected


# Whose turn it is.


def test_background_work_is_owed_its_share_while_both_classes_wait() -> None:
    shares, turns = FairShare(QUARTER), []
    for _ in range(400):
        turns.append(background := shares.is_background)
        shares = shares.took(3.0, background=background, others=True)
    assert turns[:2] == [False, True]
    assert sum(turns) == 100


def test_what_batches_cost_is_what_is_shared() -> None:
    shares, took = FairShare(QUARTER), Counter[bool]()
    for _ in range(1000):
        seconds = 8.0 if shares.is_background else 1.0
        took[shares.is_background] += seconds
        shares = shares.took(seconds, background=shares.is_background, others=True)
    assert took[True] / took.total() == pytest.approx(QUARTER, abs=0.01)


def test_nothing_is_owed_for_a_time_in_which_one_waited_alone() -> None:
    shares = FairShare(QUARTER).took(9.0, background=False, others=True)
    assert shares.is_background
    assert shares.took(1.0, background=False, others=False) == FairShare(QUARTER)


def test_interactive_work_first_has_as_much_time_as_the_last_background_batch_took() -> None:
    shares = FairShare(QUARTER, 5.0).took(8.0, background=True, others=False)
    for _ in range(8 * 3):
        assert not shares.is_background
        shares = shares.took(1.0, background=False, others=True)
    assert shares.took(0.1, background=False, others=True).is_background


# What shares a batch.


def background(left: int = 1, deadline: float = FAR, *, large: bool = False) -> QueuedJob:
    return replace(job(left, deadline, large=large), background=True)


def taken(*queue: QueuedJob, first: bool = False) -> tuple[int, tuple[tuple[int, int], ...]]:
    chosen = form(queue, COSTS, 0, background_first=first).run
    assert chosen is not None
    return chosen.size, chosen.takes


INTERACTIVE_AND_BACKGROUND_LARGE = (
    *(job(20, large=True), job(2)),
    *(background(20, large=True), background(3)),
)


@pytest.mark.parametrize(
    ("queue", "first", "expected"),
    [
        # Interactive rows decide how large a batch is, and background rows fill its padding:
        ((background(5), job(2), job()), False, (4, ((1, 2), (2, 1), (0, 1)))),
        ((background(5), job()), False, (1, ((1, 1),))),
        ((background(5), background(3)), False, (8, ((0, 5), (1, 3)))),
        ((job(2), background(7)), True, (8, ((1, 7), (0, 1)))),
        ((job(2),), True, (2, ((0, 2),))),
        # A batch is not filled with rows that would be late in it:
        ((background(1, deadline=7), job(3)), False, (4, ((1, 3),))),  # which takes 8
        # Large jobs yield to those of their class only:
        (INTERACTIVE_AND_BACKGROUND_LARGE, False, (16, ((1, 2), (0, 14)))),
        (INTERACTIVE_AND_BACKGROUND_LARGE, True, (16, ((3, 3), (2, 13)))),
    ],
)
def test_a_batch_has_rows_of_the_class_whose_turn_it_is_and_then_of_the_other(
    queue: tuple[QueuedJob, ...], expected: tuple[int, tuple[tuple[int, int], ...]], *, first: bool
) -> None:
    assert taken(*queue, first=first) == expected


# What is promised.


def test_background_work_is_promised_what_its_share_brings() -> None:
    alone = QueueLoad(8, {}, background={A: 16}, share=QUARTER)
    promised = (8 + 20 + 20) / QUARTER + 20  # with a largest run in hand
    for rows in (0, 16, 64):
        load = replace(alone, rows={A: rows})
        assert evaluate(load, {A: 16}, COSTS, promised, background=True).admitted
        assert not evaluate(load, {A: 16}, COSTS, promised - 1, background=True).admitted


def test_with_background_work_interactive_work_is_promised_the_rest_of_the_time() -> None:
    load = QueueLoad(0, {A: 16}, background={A: 1600}, share=QUARTER)
    assert evaluate(load, {A: 16}, COSTS, 1000).done_in == 20 + 20
    shared = replace(load, shared=True)
    assert evaluate(shared, {A: 16}, COSTS, 1000).done_in == (20 + 20) / (1 - QUARTER)


def test_background_work_is_served_after_earlier_promises() -> None:
    load = QueueLoad(0, {A: 1600})
    needed = 101 * 20 + 20  # with a largest run in hand
    assert evaluate(load, {A: 16}, COSTS, needed, background=True).admitted
    assert not evaluate(load, {A: 16}, COSTS, needed - 1, background=True).admitted


def test_background_work_too_large_for_its_share_is_never_admitted() -> None:
    assert evaluate(QueueLoad(0, {}), {A: 16}, COSTS, 80, background=True).admitted
    assert not evaluate(QueueLoad(0, {}), {A: 16}, COSTS, 79, background=True).possible
    assert not evaluate(QueueLoad(0, {A: 1}), {A: 16}, COSTS, 79, background=True).possible


def test_background_work_may_retry_sooner_when_it_has_all_of_the_time() -> None:
    load = QueueLoad(0, {}, background={A: 16}, share=QUARTER)
    sooner = evaluate(load, {A: 16}, COSTS, 100, background=True).retry_after
    assert sooner == QUARTER * (160 + 20 - 100)
    beside = evaluate(replace(load, rows={A: 1}), {A: 16}, COSTS, 100, background=True).retry_after
    assert beside == sooner / QUARTER


def test_retry_times_follow_the_share_of_the_class() -> None:
    load = QueueLoad(0, {A: 160}, share=QUARTER, shared=True)
    whole = evaluate(load, {A: 16}, COSTS, 100)
    assert whole.retry_after == pytest.approx((1 - QUARTER) * (220 / (1 - QUARTER) + 20 - 100))
    assert whole.retry_interval == 20
    beside = evaluate(replace(load, background={A: 1}), {A: 16}, COSTS, 100)
    assert beside.retry_after == pytest.approx(whole.retry_after / (1 - QUARTER))
    assert beside.retry_interval == 20 / (1 - QUARTER)
    assert evaluate(load, {A: 16}, COSTS, 100, background=True).retry_interval == 20 / QUARTER


def traffic(seed: int) -> list[Arrival]:
    chance = random.Random(seed)
    return [
        Arrival(
            at=chance.randint(0, 300),
            key=chance.choice([A, B]),
            rows=chance.randint(1, 40) if chance.random() < 0.2 else chance.randint(1, 4),
            seconds=chance.randint(1, 400),
            background=chance.random() < 0.5,
        )
        for _ in range(40)
    ]


def test_almost_no_admitted_job_is_late() -> None:
    """Not exactly: an idle device keeps no reserve, and background work is not foreseen."""
    admitted = late = 0
    for seed in range(100):
        end = Simulation(COSTS, devices=1 + seed % 4).play(traffic(seed))
        admitted += len(end.admitted)
        late += sum(end.done.get(who, math.inf) > by for who, by in end.admitted.items())
    assert admitted > 1250
    assert late <= admitted / 2000


def test_a_job_promised_all_of_the_time_delays_background_work_briefly() -> None:
    """Large, and with much time, it lets all others pass; their promises are for the rest."""
    late = Counter[bool]()
    admitted = Counter[bool]()
    for seed in range(10):
        chance = random.Random(seed)
        promised_full_share = Arrival(0, A, 64, 4000)
        others = [Arrival(chance.randint(1, 4000), A, 16, 250) for _ in range(260)]
        much = [Arrival(chance.randint(1, 4000), A, 16, 1000, background=True) for _ in range(70)]
        arrivals = sorted([promised_full_share, *others, *much], key=attrgetter("at"))
        end = Simulation(COSTS).play(arrivals)
        for who, by in end.admitted.items():
            admitted[arrivals[who].background] += 1
            late[arrivals[who].background] += end.done.get(who, math.inf) > by
    assert admitted[True] > 300
    assert admitted[False] > 1000
    assert late.total() <= admitted.total() / 500


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, QUARTER, 0.5])
def test_under_overload_each_class_has_its_share(share: float) -> None:
    costs = CostModel({A: Buckets({1: 1, 4: 4})})
    arrivals = [
        Arrival(at, A, 4, 200, background) for at in range(1000) for background in (False, True)
    ]
    end = Simulation(costs, shares=FairShare(share)).play(arrivals)
    order = sorted(arrivals, key=attrgetter("at"))
    rows = Counter(order[who].background for who in end.done)
    assert rows.total() > 225  # of 250 batches that there is time for
    assert rows[True] / rows.total() == pytest.approx(share, abs=0.02)
    assert end.dropped == {}


def test_endless_background_work_delays_interactive_work_by_one_batch() -> None:
    flood = [Arrival(at, A, 16, 1000, background=True) for at in range(0, 2000, 10)]
    few = [Arrival(at, A, 1, 1000) for at in range(55, 2000, 200)]
    end = Simulation(COSTS).play([*flood, *few])
    order = sorted([*flood, *few], key=attrgetter("at"))
    mine = [who for who, one in enumerate(order) if not one.background]
    assert [who for who in mine if end.done[who] - order[who].at > 20 + 5] == []
    assert len(end.done) > len(few) + 50


# The batcher.


async def test_interactive_jobs_overtake_earlier_background_ones() -> None:
    device = Device()
    async with batcher_of(device) as batcher:

        async def ask(name: str, rows: int, *, background: bool) -> None:
            deadline = time.monotonic() + (1000 if background else 2000)
            with batcher.reserve([JobSpec(A, rows, 1)], deadline, background=background) as [
                reservation
            ]:
                await batcher.submit(reservation, name)

        tasks = [asyncio.create_task(ask("first", 8, background=True))]
        await device.begun()
        tasks += [asyncio.create_task(ask("bulk", 16, background=True)) for _ in range(2)]
        await settle()
        tasks += [asyncio.create_task(ask(name, 4, background=False)) for name in ("a", "b")]
        await settle()
        backlog = batcher.backlog()
        assert (backlog.rows, backlog.background) == (40, 32)
        served = []
        for _ in range(5):
            device.end()
            served.append(truth(await device.begun())[0][0])
        assert served == ["a", "bulk", "bulk", "bulk", "bulk"]
        device.end()
        await asyncio.gather(*tasks)
        assert batcher.backlog().background == 0


async def test_the_error_says_that_background_work_has_too_little_time() -> None:
    async with batcher_of(Device()) as batcher:
        batcher.admit([JobSpec(A, 8, 1)], 2.0)  # takes 1.8
        with pytest.raises(DeadlineExceeded, match=r"about 7\.20 s as background work"):
            batcher.admit([JobSpec(A, 8, 1)], 2.0, background=True)


async def test_background_work_has_half_of_the_memory() -> None:
    async with batcher_of(Device(), max_bytes=100) as batcher:
        deadline = time.monotonic() + 1000
        with pytest.raises(TooLarge, match="the limit is 50"):
            batcher.admit([JobSpec(A, 1, 51)], 1000, background=True)
        with batcher.reserve([JobSpec(A, 1, 40)], deadline, background=True):
            with pytest.raises(Overloaded, match="fill the limit of 50 bytes"):
                batcher.admit([JobSpec(A, 1, 11)], 1000, background=True)
            batcher.admit([JobSpec(A, 1, 60)], 1000)
            with pytest.raises(Overloaded, match="fill the limit of 100 bytes"):
                batcher.admit([JobSpec(A, 1, 61)], 1000)
            # Background payloads count, too.
            assert batcher.predict([JobSpec(A, 1, 20)])[1] == 0.6
            assert batcher.predict([JobSpec(A, 1, 5)], background=True)[1] == 0.9


async def test_refused_background_work_lowers_no_promise() -> None:
    async with batcher_of(Device()) as batcher:
        deadline = time.monotonic() + 1000
        with batcher.reserve([JobSpec(A, 8, 1)], deadline):
            before, _ = batcher.predict([JobSpec(A, 8, 1)])
            for seconds in (-1.0, 0.001):
                with pytest.raises(DeadlineExceeded):
                    batcher.admit([JobSpec(A, 8, 1)], seconds, background=True)
            assert batcher.predict([JobSpec(A, 8, 1)])[0] == before
            batcher.admit([JobSpec(A, 1, 1)], 1000, background=True)
            assert batcher.predict([JobSpec(A, 8, 1)])[0] == before  # nothing has come of it
            with batcher.reserve([JobSpec(A, 1, 1)], deadline, background=True) as [reservation]:
                queued = asyncio.create_task(batcher.submit(reservation, "bulk"))
                await settle()
                assert batcher.predict([JobSpec(A, 8, 1)])[0] > before
                queued.cancel()


# The classifier.


async def test_interactive_images_are_decoded_before_background_ones() -> None:
    limits = Limits(Bounds(100_000), 10**9, 60, decoders=1)
    async with classifying(limits=limits) as served:
        ask = served.classifier.classify
        much = [
            asyncio.create_task(ask([RED] * 8, plan="single", top_k=1, seconds=30, background=True))
            for _ in range(5)
        ]
        await asyncio.sleep(0)
        assert best(await ask([RED], plan="single", top_k=1, seconds=30)) == ["red"]
        waiting = [task for task in much if not task.done()]
        assert waiting  # it came after them and was there before
        assert served.backlog().background > 8
        for answers in await asyncio.gather(*much):
            assert best(answers) == ["red"] * 8


async def test_the_decode_wait_of_background_images_is_predicted() -> None:
    backend = fake_backend()
    limits = Limits(Bounds(100_000), 10**9, 60, decoders=1)
    async with classifying(backend, limits=limits) as served:
        backend.decoders = backend.decoders.observed(9.0)  # seconds for an image
        go = threading.Event()
        backend.decoder.submit(go.wait)
        much = asyncio.create_task(
            served.classifier.classify(
                [RED] * 3, plan="single", top_k=1, seconds=99, background=True
            )
        )
        try:
            await asyncio.sleep(0.01)
            served.classifier.admit(plan="single", seconds=15)  # one is before it
            with pytest.raises(Overloaded, match="rows are queued"):
                served.classifier.admit(plan="single", seconds=15, background=True)
        finally:
            go.set()
        await much


# Requests.


@pytest.mark.parametrize("path", ["/classify", "/v2/models/fake/infer"])
def test_the_priority_header_makes_a_request_background(path: str) -> None:
    settings = SETTINGS.model_copy(update={"views": "single", "timeout_seconds": 5.0})
    body: dict[str, object] = {"files": parts(plain("red"))}
    if path != "/classify":
        data = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [9, 0, 0]}
        body = {"json": {"inputs": [data]}}
    slow = fake_backend(seconds_per_row=2.0)
    with service(lambda *_: slow, settings) as client:
        refused = client.post(path, headers=BACKGROUND, **body)
        assert refused.status_code == 504
        assert "as background work" in refused.text
        assert client.post(path, headers={"Priority": "u=6"}, **body).status_code == 200


def test_a_background_request_has_the_same_response() -> None:
    with service(lambda *_: fake_backend(), SETTINGS) as client:
        answer = client.post("/classify", files=parts(plain("red")), headers=BACKGROUND)
        assert answer.json()["predictions"][0]["label"] == "red"
        chosen = client.post("/classify?views=auto", files=parts(plain("red")), headers=BACKGROUND)
        assert chosen.json()["views"] == "paper"
        assert value(client, "googlenet_queue_background_rows") == 0


def test_grpc_metadata_makes_a_call_background() -> None:
    settings = SETTINGS.model_copy(update={"views": "single", "timeout_seconds": 5.0})
    with hosting(fake_backend(seconds_per_row=2.0), settings) as hosted:
        refused = hosted.infer(image(plain("red")), headers={"priority": "u=7"})
        assert "as background work" in refused.details
        assert hosted.infer(image(plain("red"))).message


def test_the_client_sends_the_priority_of_background_requests() -> None:
    with misbehaving(GOOD, GOOD) as (url, requests), Client(url) as client:
        client.classify(plain("red"), background=True)
        client.classify(plain("red"))
    assert [b"priority: u=7" in request.lower() for request in requests] == [True, False]
    assert b"bulk" not in requests[0]


async def test_refused_background_work_delays_no_other_request() -> None:
    device = Device()
    async with batcher_of(device) as batcher:
        deadline = time.monotonic() + 20.0
        with batcher.reserve([JobSpec(A, 80, 1)], deadline):  # takes 18
            for _ in range(50):
                with pytest.raises(Overloaded) as background:
                    batcher.admit([JobSpec(A, 8, 1)], 10.0, background=True)
            with pytest.raises(Overloaded) as ours:
                batcher.admit([JobSpec(A, 8, 1)], 18.0)
        assert ours.value.retry_after < 15  # though fifty have been told of later times
        assert background.value.retry_after > 50
