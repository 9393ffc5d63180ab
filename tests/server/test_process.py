"""The real process: it listens, becomes ready, serves, and ends as it is told to."""

import hashlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest
from conftest import ROOT, Served, answered, missing, serving, wait_ready, website
from test_classify import JPEG

from service.models.store import WEIGHTS, Store
from service.serving.restart_policy import MAX_ENDS
from service.serving.served_model import RESTARTING


def options(store: Path, max_batch: int = 1) -> list[str]:
    """Serve the real weights, loaded quickly, with time for a busy machine."""
    return [
        *("--model", "bvlc_googlenet", "--model-store", str(store), "--device", "cpu"),
        *("--max-batch", str(max_batch), "--timeout-seconds", "600"),
        *("--precision", "float32", "--cpu-threads", "1"),
    ]


@pytest.fixture(scope="module")
def served(real_store: Store) -> Iterator[Served]:
    """A ready process on the real weights that no other module asks."""
    with serving(*options(real_store.root, 4)) as ours, client_of(ours.port) as client:
        wait_ready(client)
        yield ours


@contextmanager
def client_of(port: int) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        yield client


def samples(client: httpx2.Client) -> dict[str, float]:
    """Give the metrics' values, by name with labels."""
    lines = client.get("/metrics").text.splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for what only a scrape can tell."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.05)
    pytest.fail(f"it did not come to hold in {seconds} s")


def curl(*arguments: str) -> tuple[str, dict[str, str], str]:
    """Run curl, and give the status, the headers and the body it got."""
    if not shutil.which("curl"):
        missing("curl")
    done = subprocess.run(  # noqa: S603 - our own arguments
        ["curl", "--silent", "--show-error", "--include", *arguments],  # noqa: S607 - any curl
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, head, body = re.sub(r"HTTP/1.1 100 Continue\r?\n\r?\n", "", done.stdout).split("\n\n", 1)
    status, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return status.split(" ", 1)[1], headers, body


def test_curl_classifies_an_image(served: Served, shared: Path) -> None:
    url = f"http://127.0.0.1:{served.port}/classify"
    status, headers, body = curl("-F", f"file=@{shared}/photos/flickr/beagle.jpg", url)
    assert status == "200 OK"
    assert headers["content-type"] == "application/json"
    assert '"predictions":[{"label":"beagle"' in body
    assert "server" not in headers


@pytest.mark.parametrize("how", [
    ["-F", "file=@{}"],
    ["-F", "file=@{}", "-H", "Expect:"],  # curl does not ask before it sends
    ["-X", "POST", "-T", "{}", "-H", "Transfer-Encoding: chunked", "-H", "Content-Type: image/png"],
    ["-X", "POST", "-T", "{}", "-H", "Transfer-Encoding: chunked", "-H", "Content-Type: image/png",
     "-H", "Expect:"],
], ids=["declared", "declared, at once", "chunked", "chunked, at once"])  # fmt: skip
def test_curl_can_read_why_an_upload_is_too_large(
    how: list[str], served: Served, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(30 * 1024 * 1024)
    arguments = [argument.format(large) for argument in how]
    status, headers, body = curl(*arguments, f"http://127.0.0.1:{served.port}/classify")
    assert status == "413 Request Entity Too Large"
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert '"code":"too_large"' in body


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_everything_before_reading_gets_the_413(
    *, chunked: bool, served: Served
) -> None:
    chunk = bytes(1024 * 1024)
    headers = {"Content-Type": "image/png"}
    headers |= {} if chunked else {"Content-Length": str(30 * len(chunk))}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    with closing(connection):
        connection.request("POST", "/classify", iter([chunk] * 30), headers, encode_chunked=chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert b'"code":"too_large"' in response.read()


def test_a_client_that_leaves_the_queue_costs_no_forward(served: Served, beagle: bytes) -> None:
    left = 'googlenet_cancelled_total{where="queue",why="cancelled"}'
    request = (
        f"POST /classify?views=ten HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(beagle)}\r\n\r\n"
    ).encode() + beagle
    with client_of(served.port) as client, ThreadPoolExecutor() as threads:
        before = samples(client)
        others = [
            threads.submit(client.post, "/classify?views=ten", files={"file": beagle})
            for _ in range(6)
        ]
        until(lambda: samples(client)["googlenet_requests_in_flight"] == 7)
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(request)
            until(lambda: samples(client)["googlenet_requests_in_flight"] == 8)
            time.sleep(0.5)  # to be decoded and queued, behind those with earlier deadlines
        until(lambda: samples(client)[left] > before[left])
        assert [other.result().status_code for other in others] == [200] * 6
        after = samples(client)
        assert after[left] == before[left] + 1
        rows = "googlenet_batch_rows_sum"
        assert after[rows] == before[rows] + 60
        assert after["googlenet_queue_rows"] == 0
        gone = answered(499)
        assert after[gone] == before.get(gone, 0) + 1


@contextmanager
def started(store: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process whose log one can read, and give the port it listens on."""
    process = subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", "serve", "--port", "0", *options(store), *more],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        log = iter(process.stderr.readline, "")
        ports = (re.search(r"running on http://127\.0\.0\.1:(\d+)", line) for line in log)
        yield process, next(int(found[1]) for found in ports if found)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_startup_readiness_and_graceful_shutdown(
    number: signal.Signals, real_store: Store, beagle: bytes
) -> None:
    with (
        started(real_store.root) as (process, port),
        client_of(port) as client,
        ThreadPoolExecutor() as threads,
    ):
        early = client.get("/readyz")
        assert (early.status_code, early.text) == (
            503,
            "the model is being loaded, warmed and timed\n",
        )
        refused = client.post("/classify", files={"file": beagle})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        wait_ready(client)
        files = [("file", beagle)] * 4  # forty rows, one at a time: a second or more
        answer = threads.submit(client.post, "/classify?views=ten", files=files)
        until(lambda: samples(client)["googlenet_requests_in_flight"] == 2)
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
        assert answer.result().status_code == 200
    assert "serving bvlc_googlenet on cpu in float32" in " ".join(log.split())
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert process.returncode == 0


@dataclass(frozen=True)
class Asked:
    """A request of a caller that keeps its connection for as long as it may."""

    began: float
    status: int  # 0: the connection was refused or broke
    has_to_leave: bool  # the answer ends the connection


def ask_again_and_again(port: int, image: bytes, over: threading.Event) -> list[Asked]:
    asked = []
    with client_of(port) as client:
        while not over.is_set():
            began = time.monotonic()
            try:
                answer = client.post("/classify?views=single", content=image, headers=JPEG)
            except httpx2.TransportError:
                asked.append(Asked(began, 0, has_to_leave=False))
                break
            has_to_leave = answer.headers.get("connection") == "close"
            asked.append(Asked(began, answer.status_code, has_to_leave))
    return asked


@pytest.mark.slow
def test_a_shutdown_under_load_drops_no_request(real_store: Store, beagle: bytes) -> None:
    drain, over = 2.0, threading.Event()
    with (
        started(real_store.root, f"--drain-seconds={drain}") as (process, port),
        client_of(port) as client,
        ThreadPoolExecutor() as threads,
    ):
        wait_ready(client)
        callers = [threads.submit(ask_again_and_again, port, beagle, over) for _ in range(4)]
        until(lambda: samples(client)["googlenet_requests_in_flight"] >= 4)
        told = time.monotonic()
        process.terminate()
        until(lambda: client.get("/readyz").status_code == 503)
        assert time.monotonic() - told < drain / 2
        assert client.get("/readyz").text == "the service is stopping\n"
        assert client.get("/livez").status_code == 200
        assert samples(client)["googlenet_ready"] == 0
        _, log = process.communicate(timeout=60)
        over.set()
        asked = [one for caller in callers for one in caller.result()]
    assert process.returncode == 0
    assert "stopping, accepting requests for 2 s more" in log
    assert {one.status for one in asked if one.began < told + drain} == {200}
    draining = [one for one in asked if one.began > told + 0.2 and one.status]
    assert draining
    assert all(one.has_to_leave for one in draining)


@pytest.mark.slow
def test_a_second_signal_exits_at_once(real_store: Store, beagle: bytes) -> None:
    with (
        started(real_store.root, "--drain-seconds=60") as (process, port),
        client_of(port) as client,
        ThreadPoolExecutor() as threads,
    ):
        worker = worker_of(process)
        wait_ready(client)
        lost = threads.submit(client.post, "/classify?views=paper", files={"file": beagle})
        until(lambda: samples(client)["googlenet_requests_in_flight"] == 2)
        process.terminate()
        until(lambda: client.get("/readyz").status_code == 503)
        process.terminate()
        assert process.wait(timeout=5) == 128 + signal.SIGTERM
        with pytest.raises(httpx2.TransportError):
            lost.result()
        until(lambda: not worker.exists())


def worker_of(process: subprocess.Popen[str]) -> Path:
    """Wait until a process has begun another one, and give that one's folder (on Linux)."""
    found: list[str] = []

    def has_begun() -> bool:
        lists = Path(f"/proc/{process.pid}/task").glob("*/children")
        found[:] = [number for one in lists for number in one.read_text().split()]
        return bool(found)

    until(has_begun)
    (number,) = found
    return Path("/proc") / number


SOON = 5.0  # seconds; what is loaded here takes longer, or never ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_it_loads(number: signal.Signals, real_store: Store) -> None:
    """A terminal sends it to every process of the group."""
    with started(real_store.root, "--drain-seconds=60") as (process, _):
        worker = worker_of(process)
        until(lambda: b"service.worker.main" in (worker / "cmdline").read_bytes())
        os.kill(int(worker.name), signal.SIGSTOP)  # it will never have loaded
        os.killpg(process.pid, number)
        _, log = process.communicate(timeout=SOON)
    assert "Traceback" not in log
    assert "has ended" not in log
    assert process.returncode == 0
    assert not worker.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["model", "additional-models"])
def test_a_signal_ends_it_while_it_downloads(
    number: signal.Signals, role: str, tmp_path: Path
) -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(60)

    folder = tmp_path / "far"
    folder.mkdir()
    with website(hang) as address:
        text = (ROOT / "model_store/googlenet/model.toml").read_text()
        source = re.sub(r'url = "[^"]*"', f'url = "{address}/far.pth"', text)
        folder.joinpath("model.toml").write_text(source)
        shutil.copy(ROOT / "model_store/imagenet.tsv", tmp_path)
        models = {"model": "digits", "additional-models": None} | {role: "far"}
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "service", "serve", "--port", "0",
             "--model-store", str(tmp_path),
             *(f"--{name}={value}" for name, value in models.items() if value)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
        try:
            assert asked.wait(60)
            os.killpg(process.pid, number)
            _, log = process.communicate(timeout=SOON)
        finally:
            process.kill()
            over.set()
    assert "Traceback" not in log
    assert process.returncode == 0


@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.slow
def test_the_worker_ends_with_the_server(*, is_ready: bool, real_store: Store) -> None:
    with started(real_store.root) as (process, port), client_of(port) as client:
        worker = worker_of(process)
        if is_ready:
            wait_ready(client)
        assert worker.exists()
        process.kill()
        _, log = process.communicate(timeout=60)  # both have ended when nobody can log any more
    assert "Traceback" not in log


RESTARTS = 'googlenet_worker_restarts_total{model="digits"}'


def test_a_killed_worker_is_restarted_a_few_times(beagle: bytes) -> None:
    """Then the process ends, too: whatever started it may do better."""
    digits = ("--model", "digits", "--cpu-threads", "1")
    with serving(*digits) as ours, client_of(ours.port) as client:
        killed: list[Path] = []
        for count in range(MAX_ENDS):
            until(lambda: worker_of(ours.process) not in killed, 60)
            wait_ready(client)
            worker = worker_of(ours.process)
            assert client.post("/classify", files={"file": beagle}).status_code == 200
            assert samples(client)[RESTARTS] == count
            killed.append(worker)
            os.kill(int(worker.name), signal.SIGKILL)
            if count == 0:
                until(lambda: client.get("/readyz").status_code == 503)
                assert client.get("/readyz").text == f"{RESTARTING}\n"
                assert client.get("/livez").status_code == 200
                refused = client.post("/classify", files={"file": beagle})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert ours.process.wait(30) == 1
    log = " ".join("".join(ours.log).split())
    assert log.count("the worker process has exited, with status -9") == MAX_ENDS
    assert "giving up" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_worker_that_hangs_fails_the_probe_even_if_no_batch_runs(
    real_store: Store, beagle: bytes
) -> None:
    patience = ("--stall-seconds=1", "--timeout-seconds=3")
    with started(real_store.root, *patience) as (process, port), client_of(port) as client:
        worker = worker_of(process)
        wait_ready(client)
        os.kill(int(worker.name), signal.SIGSTOP)
        assert client.get("/livez").status_code == 200  # nobody has asked it for anything
        late = client.post("/classify?views=single", files={"file": beagle})
        assert late.status_code == 504
        assert client.get("/livez").text == "the device has not answered for 3 s\n"
        os.kill(int(worker.name), signal.SIGCONT)
        until(lambda: client.get("/livez").status_code == 200)
        again = client.post("/classify?views=single", files={"file": beagle})
        assert again.status_code == 200


def test_openvino_is_in_the_worker_only_and_torch_nowhere(served: Served) -> None:
    """A process's memory map names the libraries that it has loaded."""
    front = Path(f"/proc/{served.process.pid}/maps").read_text()
    worker = (worker_of(served.process) / "maps").read_text()
    assert "libopenvino" not in front
    assert "libopenvino" in worker
    assert "libtorch" not in front + worker


@pytest.mark.slow
def test_damaged_weights_end_the_process_with_an_error(real_store: Store, tmp_path: Path) -> None:
    shutil.copytree(real_store.root, tmp_path / "store")
    with (tmp_path / "store/bvlc_googlenet" / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", "serve", "--port", "0", *options(tmp_path / "store")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    log = " ".join(done.stderr.split())
    assert log.count("was changed or damaged: its SHA-256 is not the recorded one") == 1
    assert "Traceback" not in log


@pytest.mark.slow
def test_replaced_weights_change_no_results_until_a_reload(tmp_path: Path) -> None:
    """They are read once: what was checked is what is served, until the next start."""
    shutil.copytree(ROOT / "model_store/digits", tmp_path / "digits")
    five = (ROOT / "model_store/digits/held_out/5.png").read_bytes()
    file = tmp_path / "digits" / WEIGHTS
    small = ("--max-batch", "1", "--cpu-threads", "1", "--precision", "float32", "--device", "cpu")
    patient = ("--timeout-seconds", "600", "--model-store", str(tmp_path))
    with serving("--model", "digits", *small, *patient) as ours, client_of(ours.port) as client:
        wait_ready(client)

        def says() -> tuple[object, object]:
            answer = client.post("/classify", content=five, headers={"Content-Type": "image/png"})
            (model,) = client.get("/models").json()["models"]
            return answer.json(), model["members"][0]["sha256"]

        before = says()
        assert before[1] == hashlib.sha256(file.read_bytes()).hexdigest()
        file.write_bytes(bytes(file.stat().st_size))  # the same file, with other content
        assert says() == before
        (tmp_path / "other").write_bytes(b"another file")
        (tmp_path / "other").replace(file)
        assert says() == before


@pytest.mark.slow
def test_a_reload_under_load_drops_no_request(tmp_path: Path) -> None:
    """The weights of another training under the same name, at a SIGHUP."""
    shutil.copytree(ROOT / "model_store/digits", tmp_path / "digits")
    five = (ROOT / "model_store/digits/held_out/5.png").read_bytes()
    manifest = tmp_path / "digits/model.toml"
    small = ("--max-batch", "4", "--cpu-threads", "1", "--precision", "float32", "--device", "cpu")
    told: Counter[tuple[int, str]] = Counter()
    done = threading.Event()
    with (
        serving("--model", "digits", "--model-store", str(tmp_path), *small) as ours,
        client_of(ours.port) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        wait_ready(client)
        before = worker_of(ours.process)

        def ask() -> None:
            with client_of(ours.port) as mine:
                while not done.is_set():
                    kind = {"Content-Type": "image/png"}
                    answer = mine.post("/classify?views=single", content=five, headers=kind)
                    told[answer.status_code, answer.json()["predictions"][0]["label"]] += 1

        def version() -> str:
            text: str = client.get("/models").json()["models"][0]["version"]
            return text

        asking = [threads.submit(ask) for _ in range(4)]
        try:
            assert version() == "1"
            manifest.write_text(manifest.read_text().replace('version = "1"', 'version = "2"'))
            ours.process.send_signal(signal.SIGHUP)
            until(lambda: version() == "2", 60)
            until(lambda: not before.exists())
            count = told.total()
            until(lambda: told.total() > count + 20)
        finally:
            done.set()
        for one in asking:
            one.result()
    assert {*told} == {(200, "5")}
    assert sum("reloaded " in line for line in ours.log) == 1
