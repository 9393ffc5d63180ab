"""Several API processes over one core process: one service, also when some are killed."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from conftest import ROOT, Served, serving
from soak_kills import descendants

from service import cpu_info
from service.engine import gpu_info
from service.models.store import Store
from service.server import child_settings, process_count
from service.settings import Settings

COUNT = 3
DIGITS = ROOT / "model_store/digits/held_out"
KEY = "a-key-for-several-processes"
LIMIT = 20  # requests an hour
# A connection for each request, which may be any process's.
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), timeout=60)


@contextmanager
def served_by(processes: int, *arguments: str) -> Iterator[Served]:
    """A ready service of so many API processes."""
    with serving("--api-processes", str(processes), *arguments) as ours:
        until(lambda: CLIENT.get(f"{url(ours)}/readyz").status_code == 200)
        yield ours


def url(ours: Served) -> str:
    return f"http://127.0.0.1:{ours.port}"


def post(ours: Served, path: str, data: bytes, **headers: str) -> httpx2.Response:
    """Send an image."""
    headers = {"Content-Type": "application/octet-stream", **headers}
    return CLIENT.post(url(ours) + path, content=data, headers=headers)


def children(ours: Served, module: str) -> list[int]:
    """Give the ids of the service's processes that run a module."""
    return descendants(ours.process.pid, module)


def scraped(ours: Served) -> dict[str, float]:
    """Give the metrics' values, by name with labels."""
    lines = CLIENT.get(f"{url(ours)}/metrics").text.splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def answered(values: dict[str, float]) -> float:
    """Add up the answers of `POST /classify` over the statuses."""
    return sum(
        value
        for name, value in values.items()
        if name.startswith("googlenet_requests_total") and 'route="/classify"' in name
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Processes that serve the bundled model, and keep results."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'web.sha256 = "{digest}"\nweb.limits = ["{LIMIT}/hour"]\n')
    with served_by(COUNT, "--cache-bytes", "1000000", "--api-keys-file", str(keys)) as ours:
        yield ours


@pytest.fixture(scope="module")
def killed() -> Iterator[Served]:
    """Processes that tests kill."""
    with served_by(COUNT) as ours:
        yield ours


def test_quotas_cache_and_metrics_hold_across_processes(several: Served) -> None:
    image = (DIGITS / "7.png").read_bytes()
    answers = [post(several, "/classify", image, **{"X-API-Key": KEY}) for _ in range(LIMIT + 5)]
    assert Counter(answer.status_code for answer in answers) == {200: LIMIT, 429: 5}
    labels = {answer.json()["predictions"][0]["label"] for answer in answers[:LIMIT]}
    assert labels == {"7"}
    hits = [answer.headers["Cache-Status"].endswith("hit") for answer in answers[:LIMIT]]
    assert hits == [False] + [True] * (LIMIT - 1)

    assert len(children(several, "api_process")) == COUNT
    values = scraped(several)
    assert answered(values) == LIMIT + 5
    assert values['googlenet_images_total{outcome="ok",views="adaptive"}'] == LIMIT
    assert values["googlenet_cache_hits_total"] == LIMIT - 1
    assert values["googlenet_ready"] == 1
    assert values['googlenet_key_requests_total{key="web",outcome="admitted"}'] == LIMIT


@pytest.mark.slow
def test_all_routes_answer_as_one_process_does(real_store: Store, beagle: bytes) -> None:
    small = ("--max-batch", "4", "--cpu-threads", "1", "--precision", "float32")
    store = ("--model", "bvlc_googlenet", "--model-store", str(real_store.root))
    bodies = []
    for processes in (1, COUNT):
        with served_by(processes, *store, *small) as ours:
            classified = [
                post(ours, f"/classify?views={views}", beagle)
                for views in ("single", "ten", "adaptive", "adaptive:paper", "auto")
            ]
            explained = post(ours, "/explain", beagle)
            painted = post(ours, "/explain", beagle, Accept="image/png")
            lines = post(ours, "/classify", beagle, Accept="application/x-ndjson")
            broken = post(ours, "/classify", beagle[:5000])
            models = CLIENT.get(f"{url(ours)}/models")
            described = CLIENT.get(f"{url(ours)}/v2/models/bvlc_googlenet")
        answers = [*classified, explained, lines, broken, models, described]
        assert [answer.status_code for answer in answers] == [200] * 7 + [422, 200, 200]
        assert painted.content.startswith(b"\x89PNG")
        rankings = [answer.json() for answer in (*classified, lines)]
        assert all(ranking["predictions"][0]["label"] == "beagle" for ranking in rankings)
        probabilities = [
            prediction["probability"] for one in rankings for prediction in one["predictions"]
        ]
        rest = [explained.json()["maps"][0]["logit"], painted.content]
        described_alike = [models.json()["models"][0]["members"], described.json()]
        bodies.append((probabilities, rest, described_alike, broken.json()["detail"]))
    alone, several = bodies
    assert several[0] == pytest.approx(alone[0], abs=1e-6)
    assert several[1][0] == pytest.approx(alone[1][0], abs=1e-4)
    assert several[2:] == alone[2:]


def test_a_killed_api_process_is_replaced_and_its_counts_stay(killed: Served) -> None:
    image = (DIGITS / "3.png").read_bytes()
    before = answered(scraped(killed))
    sent = [post(killed, "/classify", image).status_code for _ in range(12)]
    assert sent == [200] * 12
    assert answered(scraped(killed)) == before + 12
    for pid in children(killed, "api_process"):
        os.kill(pid, signal.SIGKILL)
    # Connections wait in the listening sockets, which are the supervisor's.
    assert [post(killed, "/classify", image).status_code for _ in range(6)] == [200] * 6
    until(lambda: len(children(killed, "api_process")) == COUNT)
    assert answered(scraped(killed)) == before + 18


def test_without_the_core_all_are_answered_until_it_is_replaced(killed: Served) -> None:
    image = (DIGITS / "5.png").read_bytes()
    (core,) = children(killed, "core_process")
    os.kill(core, signal.SIGKILL)
    until(lambda: CLIENT.get(f"{url(killed)}/readyz").status_code == 503)
    refused = post(killed, "/classify", image)
    assert refused.status_code == 503
    assert refused.json()["code"] == "not_ready"
    assert "Retry-After" in refused.headers
    assert CLIENT.get(f"{url(killed)}/livez").status_code == 200
    until(lambda: CLIENT.get(f"{url(killed)}/readyz").status_code == 200)
    assert post(killed, "/classify", image).json()["predictions"][0]["label"] == "5"


def until(happens: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(300):
        if happens():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen in half a minute")


def test_sigterm_drains_all_processes() -> None:
    image = (DIGITS / "1.png").read_bytes()
    with served_by(2, "--drain-seconds", "2") as ours:
        pids = [*children(ours, "api_process"), *children(ours, "core_process")]
        ours.process.send_signal(signal.SIGTERM)
        until(lambda: CLIENT.get(f"{url(ours)}/readyz").status_code == 503)
        assert post(ours, "/classify", image).status_code == 200
        assert ours.process.wait(60) == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_a_model_that_cannot_be_loaded_ends_all(tmp_path: Path) -> None:
    store = tmp_path / "digits"
    store.mkdir()
    (store / "model.toml").write_bytes((ROOT / "model_store/digits/model.toml").read_bytes())
    (store / "weights.safetensors").write_bytes(b"no weights")
    ended = started("--model-store", str(tmp_path))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shared"])
def test_a_taken_port_is_one_sentence(shares: bool) -> None:  # noqa: FBT001 - a parameter
    with socket.create_server(("127.0.0.1", 0), reuse_port=shares) as taken:
        port = taken.getsockname()[1]
        ended = started("--port", str(port))
    assert ended.returncode == 1
    assert re.search(rf"cannot bind port {port} of 127.0.0.1 for HTTP", ended.stderr)
    assert "Traceback" not in ended.stderr


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a service that ends by itself."""
    command = ["serve", "--port", "0", "--api-processes", "2", *arguments]
    return subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", *command],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cpus", "has_gpu", "count"),
    [(1, False, 1), (16, False, 1), (17, False, 2), (96, False, 2), (4, True, 1), (5, True, 2)],
)
def test_there_are_as_many_processes_as_the_machine_needs(
    cpus: int,
    has_gpu: bool,  # noqa: FBT001 - a parameter of the test
    count: int,
) -> None:
    assert process_count.best(cpus, has_gpu=has_gpu) == count


@pytest.mark.parametrize(
    ("device", "wanted", "count"), [("auto", 0, 2), ("cpu", 0, 1), ("auto", 1, 1), ("cpu", 3, 3)]
)
def test_the_setting_comes_first_and_a_gpu_counts_if_it_computes(
    device: str, wanted: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_info, "count", lambda: 1)
    monkeypatch.setattr(cpu_info, "available", lambda: 8)
    settings = Settings(device=device, api_processes=wanted)
    assert process_count.resolved(settings).api_processes == count


def test_each_process_has_its_share_of_the_limits() -> None:
    settings = Settings(api_processes=3, max_connections=100, max_inflight_body_bytes=3000)
    share = child_settings.share_of(settings)
    assert (share.max_connections, share.max_inflight_body_bytes) == (34, 1024)
    unlimited = settings.model_copy(update={"max_connections": 0})
    assert child_settings.share_of(unlimited).max_connections == 0
