"""The probes, and the formats of the metrics."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from conftest import fake_backend, mean_colour, wait_ready
from starlette.testclient import TestClient
from test_classify import Gate, assert_problem, parts, plain, service, top

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch
from service.server.app import create_app
from service.serving.backend import Backend
from service.settings import Settings

PROBES = ("/livez", "/readyz", "/startupz")
SETTINGS = Settings(model="fake")


def probe(client: TestClient, path: str) -> tuple[int, str]:
    response = client.get(path)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    return response.status_code, response.text


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of a ready service on a fake model."""
    with service(lambda *_: fake_backend()) as client:
        yield client


def test_while_the_model_loads_the_process_lives_and_is_not_ready() -> None:
    loaded = threading.Event()

    def load(*_: object) -> Backend:
        assert loaded.wait(20)
        return fake_backend()

    reason = "the model is being loaded, warmed and timed"
    with TestClient(create_app(SETTINGS, load=load)) as client:
        try:
            assert probe(client, "/livez") == (200, "ok\n")
            assert probe(client, "/readyz") == (503, f"{reason}\n")
            assert probe(client, "/startupz") == (503, f"{reason}\n")
            assert probe(client, "/livez?verbose") == (200, "[+]worker ok\nok\n")
            assert probe(client, "/readyz?verbose") == (
                503,
                f"[-]model {reason}\n[+]worker ok\n[+]stop ok\nfailed\n",
            )
            assert probe(client, "/startupz?verbose") == (503, f"[-]model {reason}\nfailed\n")
        finally:
            loaded.set()
        wait_ready(client)
        assert [probe(client, path) for path in PROBES] == [(200, "ok\n")] * 3


@pytest.mark.parametrize("query", ["verbose", "verbose=", "verbose=1", "verbose=no"])
def test_every_check_is_listed_on_demand(query: str, client: TestClient) -> None:
    assert probe(client, f"/livez?{query}") == (200, "[+]worker ok\nok\n")
    assert probe(client, f"/readyz?{query}") == (200, "[+]model ok\n[+]worker ok\n[+]stop ok\nok\n")
    assert probe(client, f"/startupz?{query}") == (200, "[+]model ok\nok\n")


def test_when_the_model_cannot_be_loaded_probes_and_requests_get_the_reason() -> None:
    def load(*_: object) -> Backend:
        raise RuntimeError("a secret")

    reason = "the model could not be loaded; the log says why"
    with TestClient(create_app(SETTINGS, load=load)) as client:
        while "being loaded" in client.get("/startupz").text:
            pass  # as a probe does
        for path in PROBES:
            status, text = probe(client, path)
            assert status == 503
            assert {*text.splitlines()} == {reason}
        assert probe(client, "/livez?verbose") == (503, f"[-]worker {reason}\nfailed\n")
        refused = client.post("/classify", files=parts(plain("red")))
        assert assert_problem(refused, 503, "not_ready")["detail"] == reason


@contextmanager
def batch_in_flight(settings: Settings = SETTINGS) -> Iterator[TestClient]:
    """A service whose batch does not end before the block does; it then serves the next one."""
    gate = Gate()
    with service(lambda *_: fake_backend(gate), settings) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            response = threads.submit(client.post, "/classify", files=parts(plain("red")))
            assert gate.entered.wait(10)
            yield client
        assert top(response.result()) == "red"
        assert top(client.post("/classify", files=parts(plain("red")))) == "red"
        assert [probe(client, path) for path in PROBES] == [(200, "ok\n")] * 3


def test_a_batch_that_does_not_end_fails_the_probes_until_it_does() -> None:
    with batch_in_flight(Settings(model="fake", stall_seconds=0.05)) as client:
        reason = "the device has not answered for 0 s\n"
        while probe(client, "/livez") != (503, reason):
            pass  # as a probe does
        assert probe(client, "/readyz") == (503, reason)
        assert probe(client, "/startupz") == (200, "ok\n")


@pytest.mark.parametrize("seconds", [-86_400, 0, 86_400])
def test_a_slow_batch_fails_no_probe_even_if_the_clock_jumps(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    with batch_in_flight() as client:
        monkeypatch.setattr(time, "time", lambda: clock() + seconds)
        assert [probe(client, path) for path in PROBES] == [(200, "ok\n")] * 3


def test_repeated_failures_of_the_device_fail_the_probes_until_a_batch_succeeds() -> None:
    lost = True

    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        if lost:
            raise RuntimeError("an illegal memory access was encountered")
        return mean_colour(batch)

    with service(lambda *_: fake_backend(run)) as client:
        for number in range(3):
            assert probe(client, "/livez") == (200, "ok\n"), number
            failed = client.post("/classify", files=parts(plain("red")))
            assert_problem(failed, 500, "inference_failed")
            assert "illegal" not in failed.text
        reason = "the device failed on the last 3 batches\n"
        assert probe(client, "/livez") == probe(client, "/readyz") == (503, reason)
        assert "googlenet_batch_failures_total 3.0\n" in client.get("/metrics").text
        lost = False
        assert top(client.post("/classify", files=parts(plain("red")))) == "red"
        assert [probe(client, path) for path in PROBES] == [(200, "ok\n")] * 3


def test_a_batcher_that_is_dead_fails_the_probes() -> None:
    class Death(BaseException):
        """What not even the batcher catches."""

    def run(_: Batch[PreparedImage]) -> list[Probabilities]:
        raise Death

    with service(lambda *_: fake_backend(run)) as client:
        lost = client.post("/classify", files=parts(plain("red")), headers={"x-timeout-ms": "200"})
        assert_problem(lost, 504, "deadline_exceeded")
        reason = "the batcher's loop has ended\n"
        assert probe(client, "/livez") == probe(client, "/readyz") == (503, reason)
        assert probe(client, "/startupz") == (200, "ok\n")


@pytest.mark.parametrize(
    ("accepted", "given"),
    [
        (None, "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
    ],
)
def test_metrics_come_in_the_format_that_is_accepted(
    accepted: str | None, given: str, client: TestClient
) -> None:
    response = client.get("/metrics", headers={"accept": accepted} if accepted else {})
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == given
    is_open = given.startswith("application/openmetrics")
    assert response.text.endswith("# EOF\n") is is_open
    name = "googlenet_batches" if is_open else "googlenet_batches_total"
    assert f"# TYPE {name} counter\n" in response.text
