"""The yardstick measures what it says: load, stages, limit, and a service of one's own."""

import asyncio
import dataclasses
import io
import itertools
import json
import math
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Run as Forward
from conftest import fake_backend, mean_colour
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_bench_client import ANSWER, live, run, scripted
from test_classify import plain

from service.bench import load, measure, photos, process, scrape
from service.bench.client import Client, Reply, Target
from service.bench.figures import (
    Closed,
    Latency,
    Level,
    Lone,
    Measured,
    Memory,
    Report,
    Spread,
    Start,
    Sustained,
)
from service.bench.load import _MOST_IN_FLIGHT, Run, Sample
from service.bench.measure import BUSY, WAYS, Options
from service.bench.process_usage import PerImage
from service.bench.report import tables
from service.bench.throughput_limit import Rate, _alone, _forwards, _loaded, _rate
from service.errors import BenchError
from service.models.store import Store
from service.serving.metrics.labels import STAGES
from service.settings import Settings

QUICK = Options(seconds=0.3, rounds=1, requests=20, slo=0, deadline=0.1)
STEADY = dataclasses.replace(QUICK, seconds=1)  # a machine that others use may pause for less
MEBIBYTE = 1024 * 1024


# Load, on a client that asks nobody.


class Answers:
    """A client whose answers are a coroutine's; counts what is in flight."""

    def __init__(self, answer: Callable[[int], object] = lambda _: None, status: int = 200) -> None:
        self.asked: list[bytes] = []
        self.began: list[float] = []
        self.ended: list[float] = []
        self.in_flight = self.most = 0
        self._answer, self._status = answer, status

    async def ask(self, request: bytes) -> Reply:
        """Count, and answer in one's own time."""
        self.began.append(time.perf_counter())
        self.asked.append(request)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        waited = self._answer(len(self.asked) - 1)
        await (waited if asyncio.iscoroutine(waited) else asyncio.sleep(0))
        self.in_flight -= 1
        self.ended.append(time.perf_counter())
        return Reply(self._status)


@pytest.mark.parametrize("connections", [1, 3, 50])
def test_each_caller_of_a_closed_loop_waits_for_its_answer(connections: int) -> None:
    client = Answers(lambda _: asyncio.sleep(0.001))
    run(load.closed_loop(client, [b"a"], connections=connections, seconds=0.1))
    assert client.most == connections
    assert client.in_flight == 0


def test_a_closed_loop_counts_the_answers_of_its_window_only() -> None:
    client = Answers(lambda _: asyncio.sleep(0.002))
    before = time.perf_counter()
    result = run(load.closed_loop(client, [b"a"], connections=1, seconds=0.2))
    # Whatever the machine does: an answer is taken between its end and the next one's beginning.
    warm = load.WARM_UP * 0.2
    following = [*client.began[1:], math.inf]
    early = sum(moment < before + warm for moment in following)
    late = sum(moment >= client.began[0] + 0.2 for moment in client.ended)
    inside = sum(
        moment >= client.began[0] + warm and after < before + 0.2
        for moment, after in zip(client.ended, following, strict=True)
    )
    assert inside <= len(result.samples) <= len(client.asked) - early - late
    assert result.seconds == pytest.approx(0.2 - warm)


def test_an_answer_after_the_window_counts_for_nothing() -> None:
    client = Answers(lambda _: asyncio.sleep(0.1))
    result = run(load.closed_loop(client, [b"a"], connections=4, seconds=0.02))
    assert len(client.ended) == 4
    assert result.samples == ()
    assert result.rate == 0


def test_requests_take_turns() -> None:
    client = Answers()
    run(load.fixed_count(client, [b"a", b"b", b"c"], 7, connections=1))
    assert b"".join(client.asked) == b"abcabca"


def test_a_closed_door_is_not_hammered_on() -> None:
    client = Answers(status=0)
    result = run(load.closed_loop(client, [b"a"], connections=2, seconds=0.1))
    assert len(client.asked) <= 2 * 11  # a hundredth of a second between two
    assert {sample.status for sample in result.samples} == {0}


@pytest.mark.parametrize(("count", "connections"), [(0, 3), (1, 3), (3, 3), (100, 7)])
def test_a_fixed_count_is_sent(count: int, connections: int) -> None:
    client = Answers(lambda _: asyncio.sleep(0))
    run(load.fixed_count(client, [b"a", b"b"], count, connections=connections))
    assert len(client.asked) == count
    assert client.most == min(count, connections)


def test_a_stall_is_seen_by_all_that_were_due_in_it() -> None:
    # The first request stops the whole machine until after the run. None of the others could
    # even be sent before, and each waited from when it was due: no omission is coordinated.
    def stop_everything(number: int) -> None:
        if number == 0:
            time.sleep(0.3)

    client = Answers(stop_everything)
    result = run(load.open_loop(client, [b"a"], rate=200, seconds=0.2))
    due = [*load.arrivals(200, 0.2, seed=0)]
    waited = [0.3 - moment for moment in due if moment >= load.WARM_UP * 0.2]
    assert len(client.asked) == len(due)
    assert len(result.samples) == len(waited) > 20
    assert all(
        sample.seconds >= least for sample, least in zip(result.samples, waited, strict=True)
    )


def test_arrivals_do_not_wait_for_answers() -> None:
    answered = asyncio.Event()
    expected = len([*load.arrivals(500, 0.1, seed=3)])

    async def until_all_have_come(number: int) -> None:
        if number == expected - 1:
            answered.set()
        await answered.wait()

    client = Answers(until_all_have_come)
    run(load.open_loop(client, [b"a"], rate=500, seconds=0.1, seed=3))
    assert client.most == expected > 20


def test_no_more_are_in_flight_than_connections_can_be_opened() -> None:
    answered = asyncio.Event()

    async def until_there_are_enough(number: int) -> None:
        if number == _MOST_IN_FLIGHT - 1:
            answered.set()
        await answered.wait()

    client = Answers(until_there_are_enough)
    run(load.open_loop(client, [b"a"], rate=40_000, seconds=0.1))
    assert len(client.asked) > client.most == _MOST_IN_FLIGHT


RATES = st.floats(min_value=1, max_value=2000)
SEEDS = st.integers(min_value=0, max_value=2**32)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(rate=RATES, seed=SEEDS)
def test_arrivals_are_repeatable_and_in_order(rate: float, seed: int) -> None:
    moments = [*load.arrivals(rate, 0.5, seed)]
    assert moments == [*load.arrivals(rate, 0.5, seed)]
    assert moments == sorted(moments)
    assert all(0 < moment < 0.5 for moment in moments)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(rate=RATES, seed=SEEDS)
def test_arrivals_are_a_poisson_process(rate: float, seed: int) -> None:
    # 2500 are expected; as many again have a standard deviation of 50.
    moments = [0.0, *load.arrivals(rate, 2500 / rate, seed)]
    assert abs(len(moments) - 1 - 2500) < 6 * 50
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    for times in (0.1, 1, 2):  # memory would show in the distribution of the gaps
        longer = sum(gap * rate > times for gap in gaps) / len(gaps)
        assert longer == pytest.approx(math.exp(-times), abs=6 * 0.5 / math.sqrt(len(gaps)))


def test_another_seed_gives_other_arrivals() -> None:
    assert [*load.arrivals(10, 1, seed=0)] != [*load.arrivals(10, 1, seed=1)]


def test_a_run_counts_what_was_accepted_and_what_came_in_time() -> None:
    samples = [Sample(200, 0.1), Sample(200, 0.3), Sample(503, 0.01), Sample(0, 0.02)]
    result = Run(2, tuple(samples))
    assert result.accepted == [0.1, 0.3]
    assert result.refused == [0.01, 0.02]
    assert result.rate == 1
    assert [result.within(seconds) for seconds in (0.05, 0.1, 1)] == [0, 0.5, 1]


def test_a_quantile_is_not_above_the_greatest_and_of_nothing_not_a_number() -> None:
    assert load.quantile([3, 1, 2], 0.5) == 2
    assert load.quantile([3, 1, 2], 1) == 3
    assert math.isnan(load.quantile([], 0.5))


# What the service says of itself.


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the real application, whose fake model takes 50 ms for 16 views."""

    def slow(batch: object) -> object:
        time.sleep(0.05)
        return mean_colour(batch)

    run_slowly: Forward = slow
    with live(lambda *_: fake_backend(run_slowly, seconds_per_row=0.05 / 16)) as url:
        yield url


def test_the_stages_are_the_whole_of_a_request(url: str) -> None:
    target = Target.parse(url)
    request = target.post_form("/classify?views=single", plain("red"), {})

    async def main() -> tuple[scrape.Series, scrape.Series]:
        with closing(Client(target)) as client:
            before = await scrape.scrape(client)
            for _ in range(3):
                assert (await client.ask(request)).status == 200
            return before, await scrape.scrape(client)

    before, after = run(main())
    found = scrape.stages(before, after)
    assert [*found] == [*STAGES, "answer"]
    assert all(seconds >= 0 for seconds in found.values())
    labels = "[('code', '200'), ('priority', 'interactive'), ('route', '/classify')]"
    whole, count = (
        after[name] - before.get(name, 0)
        for name in (
            f"googlenet_request_duration_seconds_{what}{labels}" for what in ("sum", "count")
        )
    )
    assert count == 3
    assert sum(found.values()) == pytest.approx(whole / count)
    assert found["inference"] >= 0.05


def test_no_requests_have_no_stages() -> None:
    assert set(scrape.stages({}, {}).values()) == {0.0}


def test_memory_is_that_of_both_processes(url: str) -> None:
    async def main() -> scrape.Series:
        with closing(Client(Target.parse(url))) as client:
            return await scrape.scrape(client)

    series = run(main())
    names = ("process_resident_memory_bytes", "googlenet_worker_process_resident_memory_bytes")
    labels = ("[]", "[('model', 'googlenet')]")
    each = [series[f"{name}{labels}"] for name, labels in zip(names, labels, strict=True)]
    assert min(each) > MEBIBYTE
    assert scrape.memory(series) == sum(each)


def test_a_service_without_metrics_is_told_in_a_sentence() -> None:
    async def main() -> None:
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        async with scripted([missing]) as (client, _):
            await scrape.scrape(client)

    with pytest.raises(BenchError, match="no response from /metrics"):
        run(main())


# Images.


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("b.PNG", "lime"), ("a.jpg", "red"), ("c.webp", "blue")):
        (folder / name).write_bytes(plain(colour))
    (folder / "readme.txt").write_text("no image")
    return folder


def test_images_are_read_by_their_names(images: Path) -> None:
    (images / "d").write_bytes(plain("red"))
    said: list[str] = []
    colours = ("red", "lime", "blue", "red")
    assert photos.read(images, said.append) == [plain(colour) for colour in colours]
    note = f"skipped, not images of a supported format: 1 .txt ({images}/readme.txt)"
    assert said == [note]
    assert len(photos.read(images)) == 4
    for name in "abcd":
        next(images.glob(f"{name}*")).unlink()
    with pytest.raises(BenchError, match=re.escape(f"{images} has no images; {note}")):
        photos.read(images)


def test_a_folder_without_images_is_told_in_a_sentence(images: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="has no images"):
        photos.read(tmp_path)
    for path in (tmp_path / "absent", images / "readme.txt"):
        with pytest.raises(BenchError, match="is not a folder"):
            photos.read(path)


# Figures, as JSON and as tables.

RUNS = [
    Run(4.0, (Sample(503, 0.001), *(Sample(200, 0.01 + n / 1e4) for n in range(count))))
    for count in (4800, 4400, 5200)
]
REFUSED = Latency(0.0012, 0.0021, 0.0034)
USAGE = {
    "http": PerImage(0.0013, 2.5, 95 * MEBIBYTE),
    "worker": PerImage(0.0212, 6.2, 424 * MEBIBYTE),
}


def measured(*limits: float) -> list[Measured]:
    """Give the runs, each with the processes' usage and the limit before it, at 20 ms of CPU."""
    pairs = zip(RUNS, limits, strict=True)
    return [Measured(run, USAGE, Rate(limit, 0.020)) for run, limit in pairs]


FULL = Report(
    subject={
        "name": "bvlc_googlenet",
        "version": "1",
        "device": "cpu",
        "precision": "bfloat16",
        "python": "3.11.7",
        "machine": "16 x Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    },
    start=Start(9.31, 8.22),
    forwards={1: 101.0, 2: 150.0, 16: 310.0},
    limit=Spread(1400, 1390, 1410),
    closed=[Closed.of(*way, measured(1400.0, 1390.0, 1410.0)) for way in WAYS],
    lone=Lone(Spread.of([0.0141]), Spread.of([0.013]), Spread.of([1.08])),
    stages={
        number: {**dict.fromkeys(STAGES, 0.0123), "answer": 0.001, "way": 0.0007 * number}
        for number in (1, BUSY)
    },
    views={"ten": 9.8, "dense": 3.2, "paper": 143.1},
    sustained=Sustained(0.1, 1012.0, 0.0911),
    levels=[
        Level(1.0, 1200.0, 1199.0, 1.0, 0, Latency(0.1, 0.5, 0.9), Latency.of([]), 0.0),
        Level(1.5, 14800.0, 11150.0, 0.96, 1031, Latency(0.1234, 1.5678, 1.9876), REFUSED, 0.77),
        Level(4.0, 4800.0, 0.0, 0.0, 0, Latency.of([]), REFUSED, 1.0),
    ],
    memory=Memory((1000, 10_000), (800.0 * MEBIBYTE, 840.0 * MEBIBYTE)),
)
OTHERS = dataclasses.replace(
    FULL,
    **dict.fromkeys(("start", "forwards", "limit", "lone", "views", "memory")),
    closed=[Closed.of(*way, [Measured(run, {}, None) for run in RUNS]) for way in WAYS],
)


def printed(report: Report) -> str:
    terminal = Console(file=io.StringIO(), width=100)
    with terminal.capture() as capture:
        terminal.print(tables(report))
    return capture.get()


def rows(text: str, title: str) -> list[list[str]]:
    """Give the cells of the table with this title."""
    _, _, after = text.partition(title)
    table = after[: after.index("└")].splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if line[0:1] == "│"]


def test_rounds_are_summed_up_beside_the_limit_of_each() -> None:
    closed = Closed.of("form", 64, measured(2400.0, 1100.0, 1300.0))
    assert closed.rate == Spread(median=1200, least=1100, greatest=1300)
    assert closed.ratio == Spread(median=1.0, least=0.5, greatest=1.0)
    assert closed.latency.p50 == pytest.approx(0.25, abs=0.01)
    assert closed.failed == 3
    assert closed.usage == USAGE
    assert closed.tax
    assert closed.tax.median == pytest.approx(0.0025)
    without = Closed.of("form", 64, [Measured(run, {}, None) for run in RUNS])
    assert without.ratio is without.tax is None


def test_growth_is_a_share_of_the_first() -> None:
    assert Memory((1, 10), (100.0, 105.0)).growth == pytest.approx(0.05)


@pytest.mark.parametrize("report", [FULL, OTHERS])
def test_a_report_is_json_that_any_reader_takes(report: Report) -> None:
    text = json.dumps(dataclasses.asdict(report), allow_nan=False)
    read = json.loads(text)
    assert read.keys() == {field.name for field in dataclasses.fields(Report)}
    assert read["levels"][0]["refused"] == {"p50": None, "p90": None, "p99": None}


@pytest.mark.parametrize("report", [FULL, OTHERS])
def test_a_report_fits_a_terminal_without_holes(report: Report) -> None:
    text = printed(report)
    assert max(len(line) for line in text.splitlines()) <= 100
    for bad in ("nan", "None", "inf ", "…"):
        assert bad not in text


def test_a_report_has_a_part_for_everything_measured() -> None:
    text = printed(FULL)
    assert "ready in 9.3 s, again 8.2 s" in text
    assert rows(text, "Network alone") == [["1", "101"], ["2", "150"], ["16", "310"]]
    assert "1400 (1390 to 1410) images/s" in text
    closed = rows(text, "Closed loop")
    assert [row[:2] for row in closed] == [[body, str(number)] for body, number in WAYS]
    assert closed[0][2:4] == ["1200 (1100 to 1300)", "0.86 (0.79 to 0.92)"]
    assert closed[0][-1] == "3"
    taken = rows(text, "What an image takes of the processes http / worker")
    assert taken[0] == [
        *("form", "1", "1.30 / 21.20", "2.50 (2.50 to 2.50)", "2.5 / 6.2", "95 / 424")
    ]
    assert "A lone request: 14.1 ms, without a server 13.0 ms, ratio 1.08" in text
    once, busy = rows(text, "Where a request's time goes")
    assert once == ["1", "12.3", "12.3", "12.3", "12.3", "1.0", "0.7", "50.9"]
    assert busy[0] == "64"
    assert rows(text, "Cost of an image") == [["ten", "9.8"], ["dense", "3.2"], ["paper", "143.1"]]
    assert "up to 1012 a second" in text
    none, some, all_ = rows(text, "Random arrivals a second")
    assert none[-3:] == ["0 %", "", ""]
    assert some[-3:] == ["77 %", "1.2", "3.4"]
    assert all_[4:7] == ["", "", ""]
    assert "Memory: 800 MiB after 1000 requests, 840 MiB after 10000 (+5.0 %)" in text


def test_what_another_service_does_not_tell_is_left_out() -> None:
    text = printed(OTHERS)
    for part in ("ready in", "Network", "Limit", "A lone request", "What an image takes", "Memory"):
        assert part not in text
    assert all(row[3] == "" for row in rows(text, "Closed loop"))


# All measurements, on another's service. All of them by default would take minutes.

FEW = 3  # callers
SOME_WAYS = (("form", 1), ("form", FEW), ("raw", FEW))


@pytest.fixture
def _little_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WAYS", SOME_WAYS)
    monkeypatch.setattr(measure, "BUSY", FEW)
    monkeypatch.setattr(measure, "LOADS", (1.0, 6.0))
    monkeypatch.setattr(measure, "VIEWS", ("dense",))
    monkeypatch.setattr(measure, "_SEARCHES", 2)


def check(report: Report) -> None:
    """Check what every report has, and that it is plausible and can be shown."""
    assert [(one.body, one.connections) for one in report.closed] == [*SOME_WAYS]
    for one in report.closed:
        assert one.latency.p50
        assert one.latency.p90
        assert one.latency.p99
        assert 0 < one.rate.least <= one.rate.median <= one.rate.greatest
        assert 0 < one.latency.p50 <= one.latency.p90 <= one.latency.p99
        assert one.failed == 0
    assert [*report.stages] == [1, FEW]
    for stages in report.stages.values():
        assert [*stages] == [*STAGES, "answer", "way"]
        assert stages["inference"] > 0
    assert report.sustained.rate >= 0
    assert report.sustained.p99 <= report.sustained.objective
    assert [level.load for level in report.levels] == [1.0, 6.0]
    for level in report.levels:
        assert level.offered > 0
        assert level.goodput >= 0
        assert 0 <= level.refused_share <= 1
        assert (level.refused_share == 0) == (level.refused.p50 is None)
    assert report.memory
    assert min(report.memory.nbytes) > MEBIBYTE
    json.dumps(dataclasses.asdict(report), allow_nan=False)
    assert "None" not in printed(report)


@pytest.mark.usefixtures("_little_is_measured")
@pytest.mark.slow
def test_another_service_is_measured(url: str, images: Path) -> None:
    said: list[str] = []
    report = run(measure.other(url, images, STEADY, said.append))
    check(report)
    assert report.subject.items() >= {"name": "googlenet", "device": "cpu"}.items()
    for missing in (report.start, report.forwards, report.limit, report.lone, report.views):
        assert missing is None
    assert all(one.ratio is None for one in report.closed)
    assert report.sustained.objective == pytest.approx(0.1)
    assert report.levels[-1].refused_share > 0  # six times what it can do, and 100 ms
    assert report.memory
    assert report.memory.requests == (2, 20)
    assert "round 1 of 1" in said
    assert "2 requests" in said


@pytest.mark.slow
@pytest.mark.usefixtures("_little_is_measured")
def test_the_objective_may_be_given(url: str, images: Path) -> None:
    options = dataclasses.replace(QUICK, slo=1e-6, seconds=0.2)
    report = run(measure.other(url, images, options, lambda _: None))
    assert report.sustained == Sustained(1e-6, 0, 0)  # nothing is that quick


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "no ready service at 127.0.0.1:"),
        (ANSWER, "no googlenet-service at 127.0.0.1:"),
        (ANSWER.replace(b"hi", b"{}"), "no googlenet-service at 127.0.0.1:"),
        (ANSWER.replace(b"hi", b"[]"), "no googlenet-service at 127.0.0.1:"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "no ready service at"),
    ],
)
def test_what_is_no_such_service_is_told_in_a_sentence(
    answer: bytes, sentence: str, images: Path
) -> None:
    async def main() -> None:
        async with scripted([answer]) as (client, _):
            url = f"http://{client.target.host}:{client.target.port}"
            await measure.other(url, images, QUICK, lambda _: None)

    with pytest.raises(BenchError, match=re.escape(sentence)):
        run(main())


def test_images_that_the_service_refuses_are_told_in_a_sentence(url: str, images: Path) -> None:
    for path in images.iterdir():
        path.write_text("no image")
    with pytest.raises(BenchError, match="no image was classified in"):
        run(measure.other(url, images, QUICK, lambda _: None))


# A service of one's own.


def children() -> set[str]:
    """Give the processes that this one has begun and not ended (on Linux), but Python's own."""
    found = {
        child
        for task in Path("/proc/self/task").glob("*/children")
        for child in task.read_text().split()
    }
    return {child for child in found if _is_own(child)}


def _is_own(child: str) -> bool:
    """Tell whether a process runs that is not Python's own; it may end while it is looked at."""
    try:
        return "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text()
    except FileNotFoundError:
        return False


def test_a_service_that_does_not_start_is_told_and_leaves_no_process(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = children()
    chosen = Settings(model="absent", model_store=tmp_path)
    with pytest.raises(BenchError, match="did not become ready; see its log above"):
        run(measure.own(chosen, images, QUICK, lambda _: None))
    assert children() <= before
    assert "there is no model 'absent'" in capfd.readouterr().err


def test_a_service_that_nobody_waits_for_is_ended() -> None:
    before = children()

    async def main() -> None:
        async with asyncio.timeout(0.2), process.serving(["--model=absent"]):
            pytest.fail("it cannot have started")

    with pytest.raises(TimeoutError):
        run(main())
    assert children() <= before


@pytest.mark.slow
def test_a_service_that_runs_here_already_keeps_its_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, as that of the image, may name them; so may what is to be measured."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name in ("GOOGLENET_PROBE_PORT", "GOOGLENET_GRPC_PORT"):
            monkeypatch.setenv(name, port)

        async def main() -> float:
            small = ("--model=digits", "--max-batch=1", "--cpu-threads=1", "--precision=float32")
            async with process.serving([*small, f"--grpc-port={port}"]) as started:
                return started.seconds

        assert run(main()) > 0


def test_images_are_looked_for_before_anything_is_started(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(BenchError, match="is not a folder"):
        run(measure.own(Settings(), tmp_path / "absent", QUICK, said.append))
    assert said == []


@pytest.fixture
def chosen(real_store: Store) -> Settings:
    """The real weights, loaded quickly."""
    return Settings(
        model="bvlc_googlenet",
        model_store=real_store.root,
        device="cpu",
        precision="float32",
        cpu_threads=1,  # two that share a batch are slow where others compute
        max_batch=2,
    )


@pytest.fixture
def beagles(beagle: bytes, tmp_path: Path) -> Path:
    """A folder of one photo."""
    (tmp_path / "beagle.jpg").write_bytes(beagle)
    return tmp_path


@pytest.mark.usefixtures("_little_is_measured")
@pytest.mark.slow
def test_a_service_of_ones_own_is_measured_beside_the_limit(
    chosen: Settings, beagles: Path
) -> None:
    before = children()
    report = asyncio.run(measure.own(chosen, beagles, STEADY, lambda _: None))
    check(report)
    assert report.subject.items() >= {"name": "bvlc_googlenet", "precision": "float32"}.items()
    assert report.start
    assert min(report.start.first, report.start.again) > 0
    assert report.forwards
    assert [*report.forwards] == [1, 2]
    assert report.limit
    assert report.limit.least > 0
    assert all(one.ratio and one.ratio.least > 0 for one in report.closed)
    for closed in report.closed:
        assert closed.tax
        assert [*closed.usage] == ["http", "worker"]
        assert all(used.switches > 0 and used.nbytes > 0 for used in closed.usage.values())
        assert closed.usage["worker"].cpu_seconds > 0
    assert report.lone
    assert report.sustained.objective == pytest.approx(
        0.1 * report.lone.alone.median / 0.013  # an objective for this machine
    )
    assert report.lone.ratio.median == pytest.approx(
        report.lone.latency.median / report.lone.alone.median
    )
    assert report.views
    assert [*report.views] == ["dense"]
    assert report.views["dense"] > 1  # two larger views cost more than one
    assert children() <= before


# The limit, in this process: coverage does not see the other one.


@pytest.mark.slow
def test_the_limit_is_measured_with_the_executors(chosen: Settings, beagles: Path) -> None:
    try:
        assert [*_forwards(chosen)] == [1, 2]
        assert _alone(chosen, beagles) > 0
        for plan in ("single", "dense"):
            assert _rate(chosen, beagles, plan, 0.05, "beside").images > 0
        assert _rate(chosen, beagles, "single", 0.05, "within").cpu_seconds > 0
    finally:
        _loaded.cache_clear()
