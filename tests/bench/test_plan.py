"""The command that plans: what is measured, what is printed, and that the prediction holds."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import uvicorn
import uvloop
from conftest import fake_backend
from test_classify import plain
from test_planner import REPLICA, TRAFFIC
from test_simulator import A

from service import cpu_info
from service.__main__ import main
from service.bench import load, photos
from service.bench.capacity import planner, stage_times
from service.bench.capacity.planner import Plan
from service.bench.capacity.replica_model import Replica, Rows
from service.bench.capacity.simulator import simulate
from service.bench.capacity.stage_times import Subject
from service.bench.client import Client, Target
from service.cli import plan as command
from service.cli.console import terminal
from service.cli.plan import sentences, table
from service.imaging.crops import CROP
from service.imaging.image_decoder import Bounds
from service.scheduling.cost_model import Key
from service.server.app import create_app
from service.settings import Settings
from service.worker import client
from service.worker.client import WorkerClient

ANY_SIZE = Bounds(1_000_000)
Captured = pytest.CaptureFixture[str]
DIGITS = ["--model", "digits", "--max-batch", "2", "--cpu-threads", "1", "--precision", "float32"]


# Calling.


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("0.1s", 0.1), ("2s", 2.0), ("12.5ms", 0.0125)]
)
def test_a_time_is_in_milliseconds_or_seconds(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(command, "plan", lambda _, options: bool(given.append(options["slo"])))
    assert main(["plan", "--rate", "1.5", "--slo", text]) == 0
    assert given == [pytest.approx(seconds)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--slo 100ms", "the following arguments are required: --rate"),
        ("--rate 5", "the following arguments are required: --slo"),
        ("--rate 0 --slo 1s", "--rate: '0' is not a number above 0"),
        ("--rate many --slo 1s", "--rate: 'many' is not a number above 0"),
        ("--rate inf --slo 1s", "--rate: 'inf' is not a number above 0"),
        ("--rate 5 --slo 100", "--slo: '100' is not a time above 0 such as 100ms or 0.1s"),
        ("--rate 5 --slo 0s", "--slo: '0s' is not a time above 0 such as 100ms or 0.1s"),
        ("--rate 5 --slo nans", "--slo: 'nans' is not a time above 0 such as 100ms or 0.1s"),
    ],
)
def test_a_wrong_call_is_told_in_a_sentence(
    arguments: str, sentence: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments.split()])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(sentence)


@pytest.mark.slow
def test_it_is_measured_here_and_told_as_json(capsys: Captured) -> None:
    arguments = ["--rate", "1", "--slo", "10s", "--views", "single", "--json"]
    assert main(["plan", *arguments, *DIGITS]) == 0
    printed = capsys.readouterr()
    assert printed.err == "measuring each stage\nsimulating\n"
    found = json.loads(printed.out, parse_constant=pytest.fail)
    assert found["traffic"] == {"rate": 1, "objective": 10, "deadline": 10}
    assert 0 < found["alone"] <= found["predictions"][-1]["p99"] * (1 + 1e-9)
    assert found["needed"] >= 1
    assert [*found["predictions"][0]["utilisation"]] == ["computing", "decoding", "http"]


@pytest.fixture
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(_: Settings, images: Sequence[bytes]) -> tuple[Replica, Rows]:
        assert images == [plain("red")]
        return REPLICA, {A: 1}

    monkeypatch.setattr(command, "_measured", measured)


@pytest.mark.slow
@pytest.mark.usefixtures("_measured")
def test_it_is_told_in_a_table(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "red.png").write_bytes(plain("red"))
    assert main(["plan", str(tmp_path), "--rate", "400", "--slo", "50ms"]) == 0
    printed = capsys.readouterr().out
    assert "400 requests a second, 99 % of them within 50 ms" in printed
    assert "replicas needed: " in printed


@pytest.mark.slow
@pytest.mark.usefixtures("_measured")
def test_that_no_number_will_do_is_told_and_fails_the_command(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "red.png").write_bytes(plain("red"))
    assert main(["plan", str(tmp_path), "--rate", "400", "--slo", "11ms"]) == 1
    told = "no number of replicas meets the objective: a request that is alone takes 12.0 ms"
    assert capsys.readouterr().out.splitlines()[-1] == told


@pytest.fixture(scope="module")
def found() -> Plan:
    """What is planned for a replica that is given, and not measured."""
    return planner.plan(REPLICA, {A: 1}, TRAFFIC)


@pytest.mark.slow
def test_a_table_has_a_row_for_each_number_of_replicas(found: Plan, capsys: Captured) -> None:
    terminal().print(table(found))
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [int(row[0]) for row in rows] == [one.replicas for one in found.predictions]
    assert [row[-1].strip() == "met" for row in rows] == [one.met for one in found.predictions]
    assert {row[1].strip() for row in rows} == {"computing"}


def test_where_every_request_is_refused_no_number_helps_and_no_hole_is_left(
    capsys: Captured,
) -> None:
    found = planner.plan(REPLICA, {A: 1}, replace(TRAFFIC, deadline=0.009))
    assert found.needed is None
    assert {(one.p50, one.p99, one.refused) for one in found.predictions} == {(None, None, 1.0)}
    terminal().print(table(found))
    assert "None" not in capsys.readouterr().out
    assert sentences(found)[0].startswith("no number of replicas meets the objective")


def test_it_is_told_where_more_hardly_help(found: Plan) -> None:
    needed, little = sentences(found)
    assert needed.startswith(f"replicas needed: {found.needed}; ")
    assert little.startswith(f"more than {found.enough} hardly help: ")


# Measuring, on a backend that is said how long to take.


def test_each_stage_is_measured_alone_and_beside_the_others() -> None:
    backend = fake_backend(sizes=(1, 2), executors=2)
    subject = Subject(backend, [plain("red")], "ten", ANY_SIZE, decoders=2)
    replica = asyncio.run(stage_times.measure(subject, http=0.001))
    key = Key(0, 224)
    assert subject.rows == {key: 10}
    assert replica.executors == (0, 1)
    assert replica.costs == backend.ensemble.costs
    assert [*replica.batches] == [key]
    assert [*replica.batches[key]] == [1, 2]
    assert replica.slowed >= 0
    assert replica.decode.alone > 0
    assert replica.http.alone == 0.001
    assert replica.decoders == 2


# The prediction against a measurement.

ROUNDS, MOST = 4, 12  # that are wanted, and that are tried
SECONDS = 3.0  # of a round
QUIET = 0.3  # of a core: what others may use of this machine in a round that counts
TOLERANCE = 0.25


@dataclass(frozen=True)
class Compared:
    """Latencies of the same arrivals, measured and predicted, of the rounds that count."""

    measured: list[float]
    predicted: list[float]


def others(ours: Sequence[int]) -> float:
    """Give the seconds of processors that all processes but ours have had (Linux)."""
    user, nice, system, _, _, interrupts, soft, stolen = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    busy = user + nice + system + interrupts + soft + stolen
    for pid in ours:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        busy -= int(fields[11]) + int(fields[12])
    return busy / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def here(settings: Settings, worker: WorkerClient) -> AsyncIterator[Client]:
    """Serve with a worker in this process and this event loop."""
    config = uvicorn.Config(create_app(settings, load=lambda *_: worker), log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        with closing(Client(Target("127.0.0.1", listener.getsockname()[1]))) as client:
            while (await client.ask(client.target.get("/readyz"))).status != load.OK:  # noqa: ASYNC110 - as a probe does
                await asyncio.sleep(0.05)
            yield client
        server.should_exit = True
        await serving


async def calibrate(subject: Subject, client: Client, request: bytes) -> Replica:
    """Measure every stage once; what sends the requests has its time in that of HTTP."""
    before = time.process_time()
    await load.fixed_count(client, [request], 15, connections=1)
    http = (time.process_time() - before) / 15
    return await stage_times.measure(subject, http, turns=1)


async def compare(
    settings: Settings, subject: Subject, worker: WorkerClient, busy: float
) -> Compared:
    """Send random arrivals and simulate the same ones, by what was measured around them.

    Every round is measured before and after it, so the prediction has the speed that the machine
    has then. Rounds do not count in which others used the machine: that is read from the system
    and knows nothing of what was predicted.
    """
    compared = Compared([], [])
    rounds, was_quiet = 0, False
    async with here(settings, worker) as client:
        request = client.target.post_form("/classify?views=single", subject.images[0], {})
        await load.fixed_count(client, [request], 30, connections=1)
        before = await calibrate(subject, client, request)
        rate = busy / before.batches[Key(0, CROP)][1].alone
        for seed in range(MOST):
            started, used = time.perf_counter(), others([os.getpid(), worker.pid])
            run = await load.open_loop(client, [request], rate=rate, seconds=SECONDS, seed=seed)
            after = await calibrate(subject, client, request)
            used = others([os.getpid(), worker.pid]) - used
            is_quiet = used < QUIET * (time.perf_counter() - started)
            if is_quiet and was_quiet:
                rounds += 1
                compared.measured.extend(run.accepted)
                for replica in (before, after):
                    moments = load.arrivals(rate, SECONDS, seed)
                    outcome = simulate(
                        replica, subject.rows, moments, deadline=settings.timeout_seconds
                    )
                    compared.predicted.extend(outcome.latencies)
            if rounds == ROUNDS:
                return compared
            before, was_quiet = after, is_quiet
    pytest.skip("others use this machine, and nothing can be measured on it")


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="nothing says what others use")
@pytest.mark.slow
def test_the_prediction_holds_on_this_machine() -> None:
    """On the bundled model, with one core that computes, half of its time."""
    settings = Settings(
        model="digits", device="cpu", precision="float32", cpu_threads=1, max_batch=4
    )
    worker = client.load(settings, Future())
    try:
        subject = Subject(worker, [photos.sample()], "single", ANY_SIZE, cpu_info.available())
        compared = uvloop.run(compare(settings, subject, worker, 0.5))
    finally:
        worker.close()
    measured, predicted = (
        load.quantile(latencies, 0.5) for latencies in (compared.measured, compared.predicted)
    )
    assert predicted == pytest.approx(measured, rel=TOLERANCE)
