"""What is counted: names, labels, zeros, and the numbers after known traffic."""

import asyncio
import math
import platform
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fake_backend, mean_colour, wait_ready
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect
from test_classify import JPEG, Gate, parts, plain, service
from test_uploads import asgi

from service.api import statuses
from service.engine.prepared_image import PreparedImage
from service.imaging import crops
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch
from service.server.app import create_app
from service.serving.backend import Backend
from service.serving.metrics import loop_lag
from service.settings import Settings

SETTINGS = Settings(model="fake", views="ten", max_body_bytes=100_000)
REASONS = (
    *("malformed", "missing_file", "too_large", "slow_upload", "unsupported_type"),
    *("unreadable_image", "invalid_parameter", "overloaded", "not_ready", "deadline_exceeded"),
    *("slow_head", "head_too_large"),
    *("unauthorized", "forbidden", "rate_limited", "unknown_model", "conflict", "cannot_serve"),
    *("fetch_disabled", "fetch_refused", "fetch_failed"),
    *("not_explainable", "no_features", "unknown_label", "not_calibrated", "no_broader_labels"),
    *("no_room", "inference_failed", "caller_gone", "internal"),
)
CLOSED = ("idle", "evicted", "silent", "stalled", "full")
SHADOW = ("agreed", "differed", "failed", "skipped")
FETCHES = ("ok", "refused", "failed", "timeout", "too_large", "cancelled")
STAGES = ("upload", "decode", "queue", "inference")


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a ready service of its own, on a fake model."""
    with service(lambda *_: fake_backend(), SETTINGS) as client:
        yield client


def families(client: TestClient) -> list[Metric]:
    return list(text_string_to_metric_families(client.get("/metrics").text))


def counts(client: TestClient, name: str) -> dict[tuple[str, ...], float]:
    """Give a series' values by its labels, in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families(client)
        for sample in family.samples
        if sample.name == name
    }


def value(client: TestClient, name: str, *labels: str) -> float:
    return counts(client, name)[labels]


def nonzero(client: TestClient, name: str) -> dict[tuple[str, ...], float]:
    return {labels: count for labels, count in counts(client, name).items() if count}


ZEROS = {
    "googlenet_images_total": [("ok", plan) for plan in crops.NAMES],
    "googlenet_connections_closed_total": [(reason,) for reason in CLOSED],
    "googlenet_rejected_total": [("interactive", reason) for reason in REASONS],
    "googlenet_cancelled_total": [*product(("queue", "batch"), ("late", "cancelled"))],
    "googlenet_batches_total": [("full",), ("drained",), ("deadline",)],
    "googlenet_batch_failures_total": [()],
    "googlenet_batch_padding_rows_total": [()],
    "googlenet_stage_duration_seconds_count": [*product(("background", "interactive"), STAGES)],
    "googlenet_queue_wait_seconds_count": [("background",), ("interactive",)],
    "googlenet_batch_rows_count": [()],
    "googlenet_batch_duration_seconds_count": [("224",), ("288",)],
    "googlenet_fetches_total": [(outcome,) for outcome in FETCHES],
    "googlenet_shadow_images_total": [(outcome,) for outcome in SHADOW],
    "googlenet_shadow_distance_count": [()],
    "googlenet_queue_rows": [()],
    "googlenet_queue_bytes": [()],
    "googlenet_queue_predicted_seconds": [()],
}


@pytest.mark.parametrize(("name", "labels"), ZEROS.items(), ids=ZEROS)
def test_before_anything_happens_every_series_is_at_zero(
    name: str, labels: list[tuple[str, ...]], client: TestClient
) -> None:
    assert counts(client, name) == dict.fromkeys(labels, 0)


def test_the_statuses_of_classify_are_counted_from_zero(client: TestClient) -> None:
    requests = counts(client, "googlenet_requests_total")
    codes = {str(code) for code in (200, *statuses.HTTP)}
    labels = ("POST", "interactive", "/classify")
    assert {key: requests[key] for key in requests if key[1:] == labels} == {
        (code, *labels): 0 for code in codes
    }


def test_every_name_has_the_prefix_and_help(client: TestClient) -> None:
    client.post("/classify", files=parts(plain("red")))
    for family in families(client):
        assert family.name.startswith(("googlenet_", "python_", "process_"))
        assert family.documentation.strip(), f"{family.name} has no help"
    ours = {family.name for family in families(client) if family.name.startswith("googlenet_")}
    assert {
        *("googlenet_requests", "googlenet_request_duration_seconds"),
        *("googlenet_requests_in_flight", "googlenet_ready", "googlenet_model_info"),
        *("googlenet_model_load_seconds", "googlenet_model_warmup_seconds"),
        *("googlenet_worker_last_heartbeat_timestamp_seconds", "googlenet_build_info"),
        *("googlenet_event_loop_lag_seconds", "googlenet_process_threads"),
    } < ours


def test_two_apps_count_separately(client: TestClient) -> None:
    with service(lambda *_: fake_backend()) as other:
        other.post("/classify", files=parts(plain("red")))
        assert value(other, "googlenet_images_total", "ok", "ten") == 1
        assert value(client, "googlenet_images_total", "ok", "ten") == 0


def test_requests_are_counted_by_route_method_and_status(client: TestClient) -> None:
    client.post("/classify", files=parts(plain("red")))
    client.post("/classify?views=single", files=parts(plain("red")))
    client.post("/classify", content=b"no image", headers=JPEG)
    client.get("/classify")
    client.get("/models")
    client.get("/nothing")
    counted = nonzero(client, "googlenet_requests_total")
    assert {key: count for key, count in counted.items() if "/readyz" not in key} == {
        ("200", "POST", "interactive", "/classify"): 2,
        ("415", "POST", "interactive", "/classify"): 1,
        ("405", "GET", "interactive", "/classify"): 1,
        ("200", "GET", "interactive", "/models"): 1,
        ("404", "GET", "interactive", "unmatched"): 1,
    }
    timed = counts(client, "googlenet_request_duration_seconds_count")
    assert timed["200", "interactive", "/classify"] == 2
    assert timed["404", "interactive", "unmatched"] == 1


def test_label_values_never_come_from_the_input(client: TestClient) -> None:
    for path in ("/a", "/b/c", "/classify/", "/%00", "/models/x", "/docs/../x", "/läßt"):
        client.get(path)
    for method in ("BREW", "PROPFIND", "GETS", "X" * 100):
        client.request(method, "/nothing")
        client.request(method, "/models")
    client.post("/classify?views=mine&top_k=-1", files={"mine": b""}, headers={"x-request-id": "m"})
    closed = {
        "route": {
            *("/classify", "/embed", "/explain", "/models", "/models/{name}", "unmatched"),
            "/v2/models/{name}/infer",
            *("/livez", "/readyz", "/startupz", "/metrics"),
        },
        "method": {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"},
        "code": {"200", "307", "404", "405", *map(str, statuses.HTTP)},
        "views": {*crops.NAMES},
        "priority": {"interactive", "background"},
        "reason": {*REASONS, *CLOSED, "full", "drained", "deadline"},
        "outcome": {"ok", *REASONS, *SHADOW, *FETCHES},
    }
    for family in families(client):
        if family.name.startswith("googlenet_"):
            for sample in family.samples:
                for label, known in closed.items():
                    assert sample.labels.get(label) in {None, *known}, sample
    assert (
        value(client, "googlenet_requests_total", "404", "other", "interactive", "unmatched") == 4
    )
    assert value(client, "googlenet_requests_total", "405", "other", "interactive", "/models") == 4


def test_images_are_counted_by_views_and_outcome(client: TestClient) -> None:
    client.post("/classify", files=parts(plain("red"), b"text", plain("red"), plain("red")[:50]))
    client.post("/classify?views=dense", files=parts(plain("red")))
    client.post("/classify?views=single", content=b"text", headers=JPEG)
    assert nonzero(client, "googlenet_images_total") == {
        ("ok", "ten"): 2,
        ("unsupported_type", "ten"): 1,
        ("unreadable_image", "ten"): 1,
        ("ok", "dense"): 1,
        ("unsupported_type", "single"): 1,
    }
    assert nonzero(client, "googlenet_rejected_total") == {
        ("interactive", "unsupported_type"): 2,
        ("interactive", "unreadable_image"): 1,
    }


def test_background_requests_are_counted_separately(client: TestClient) -> None:
    def ask(*images: bytes, **headers: str) -> None:
        client.post("/classify?views=single", files=parts(*images), headers=headers)

    ask(plain("red"))
    ask(plain("red"), b"text", priority="u=7")
    ask(b"text", priority="u=7")
    ask(b"text")
    requests = nonzero(client, "googlenet_requests_total")
    assert {key: requests[key] for key in requests if key[3] == "/classify"} == {
        ("200", "POST", "interactive", "/classify"): 1,
        ("200", "POST", "background", "/classify"): 1,
        ("415", "POST", "background", "/classify"): 1,
        ("415", "POST", "interactive", "/classify"): 1,
    }
    timed = counts(client, "googlenet_request_duration_seconds_count")
    assert timed["200", "background", "/classify"] == 1
    waited = counts(client, "googlenet_queue_wait_seconds_count")
    assert waited == {("background",): 1, ("interactive",): 1}
    stages = counts(client, "googlenet_stage_duration_seconds_count")
    assert {key: stages[key] for key in stages if key[1] in {"upload", "decode"}} == {
        ("background", "upload"): 2,
        ("background", "decode"): 1,
        ("interactive", "upload"): 2,
        ("interactive", "decode"): 1,
    }
    refused = nonzero(client, "googlenet_rejected_total")
    assert refused == {
        ("background", "unsupported_type"): 2,
        ("interactive", "unsupported_type"): 1,
    }


def test_requests_refused_are_counted_by_reason(client: TestClient) -> None:
    client.post("/classify", content=b"", headers=JPEG)
    client.post("/classify", content=b"x" * 100_001, headers=JPEG)
    client.post("/classify?top_k=0", files=parts(plain("red")))
    client.post("/classify", files={"views": (None, b"ten")})
    client.post("/classify", content=b"a cat", headers={"content-type": "text/plain"})
    client.post("/classify?views=paper", files=parts(plain("red")), headers={"x-timeout-ms": "1"})
    assert nonzero(client, "googlenet_rejected_total") == {
        ("interactive", "malformed"): 1,
        ("interactive", "too_large"): 1,
        ("interactive", "invalid_parameter"): 1,
        ("interactive", "missing_file"): 1,
        ("interactive", "unsupported_type"): 1,
        ("interactive", "deadline_exceeded"): 1,
    }
    assert nonzero(client, "googlenet_images_total") == {}


def test_batches_their_rows_and_their_padding_are_counted() -> None:
    with service(lambda *_: fake_backend(sizes=[4])) as client:
        client.post("/classify", files=parts(plain("red")))  # ten views: 4, 4 and 2
        client.post("/classify?views=dense", files=parts(plain("red")))  # 2
        assert nonzero(client, "googlenet_batches_total") == {("full",): 2, ("drained",): 2}
        assert value(client, "googlenet_batch_rows_count") == 4
        assert value(client, "googlenet_batch_rows_sum") == 12
        assert value(client, "googlenet_batch_padding_rows_total") == 4
        by_side = counts(client, "googlenet_batch_duration_seconds_count")
        assert by_side == {("224",): 3, ("288",): 1}
        assert value(client, "googlenet_queue_wait_seconds_count", "interactive") == 2
        assert value(client, "googlenet_batch_failures_total") == 0


def test_batches_that_fail_are_counted() -> None:
    failures = iter([RuntimeError()])

    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        for failure in failures:
            raise failure
        return mean_colour(batch)

    with service(lambda *_: fake_backend(run)) as client:
        for _ in range(2):
            client.post("/classify?views=single", files=parts(plain("red")))
        assert value(client, "googlenet_batch_failures_total") == 1
        assert sum(counts(client, "googlenet_batches_total").values()) == 2
        assert nonzero(client, "googlenet_rejected_total") == {
            ("interactive", "inference_failed"): 1
        }
        assert nonzero(client, "googlenet_images_total") == {
            ("inference_failed", "single"): 1,
            ("ok", "single"): 1,
        }


def test_gauges_of_the_queue_are_at_zero_again_afterwards() -> None:
    gate = Gate()
    gauges = ("queue_rows", "queue_bytes", "queue_predicted_seconds", "requests_in_flight")

    def gauged(client: TestClient) -> list[float]:
        return [value(client, f"googlenet_{name}") for name in gauges]

    with service(lambda *_: fake_backend(gate, sizes=[1])) as client:
        assert gauged(client) == [0, 0, 0, 1]  # in flight: the scrape
        with ThreadPoolExecutor() as threads, gate.shut():
            answer = threads.submit(client.post, "/classify", files=parts(plain("red")))
            assert gate.entered.wait(10)
            rows, nbytes, seconds, in_flight = gauged(client)
            assert rows == 9  # of ten, one is in the batch that runs
            assert nbytes == 3 * 256 * 256
            assert seconds > 0
            assert in_flight == 2
        assert answer.result().status_code == 200
        assert gauged(client) == [0, 0, 0, 1]


def test_late_jobs_are_counted() -> None:
    gate = Gate()
    with service(lambda *_: fake_backend(gate)) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            sent = {"files": parts(plain("red")), "headers": {"x-timeout-ms": "500"}}
            running = threads.submit(client.post, "/classify?views=single", **sent)
            assert gate.entered.wait(10)
            queued = threads.submit(client.post, "/classify?views=single", **sent)
            assert running.result().status_code == queued.result().status_code == 504
            assert nonzero(client, "googlenet_cancelled_total") == {
                ("batch", "late"): 1,
                ("queue", "late"): 1,
            }
        assert client.post("/classify", files=parts(plain("red"))).status_code == 200


def test_a_queued_image_of_a_disconnected_client_costs_no_batch() -> None:
    gate, decoded = Gate(), asyncio.Semaphore(0)
    backend = fake_backend(gate)
    prepare = backend.prepare

    async def prepared(*image: Any, features: bool) -> Sequence[PreparedImage]:
        result = await prepare(*image, features=features)
        decoded.release()
        return result  # and is queued before other tasks run

    async def disconnecting() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": plain("red")}
        for _ in range(2):  # the image that runs, and this one
            await decoded.acquire()
        yield {"type": "http.disconnect"}

    backend.prepare = prepared  # type: ignore[assignment,method-assign]
    headers = {"content-type": "image/png"}
    with service(lambda *_: backend) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            first = threads.submit(client.post, "/classify?views=single", files=parts(plain("red")))
            assert gate.entered.wait(10)
            asgi(client, disconnecting().__anext__, headers)
            assert nonzero(client, "googlenet_cancelled_total") == {("queue", "cancelled"): 1}
            assert value(client, "googlenet_queue_rows") == 0
        assert first.result().status_code == 200
        assert client.post("/classify?views=single", files=parts(plain("red"))).status_code == 200
        assert value(client, "googlenet_batch_rows_sum") == 2
        assert nonzero(client, "googlenet_rejected_total") == {("interactive", "caller_gone"): 1}
        classified = ("POST", "interactive", "/classify")
        assert value(client, "googlenet_requests_total", "499", *classified) == 1


def test_a_client_that_disconnects_during_its_batch_is_counted() -> None:
    gate = Gate()

    async def hanging_up() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": plain("red")}
        yield {"type": "http.request"}  # nothing more of a body is no hanging up
        await asyncio.to_thread(gate.entered.wait, 10)
        yield {"type": "http.disconnect"}

    with service(lambda *_: fake_backend(gate)) as client, gate.shut():
        asgi(client, hanging_up().__anext__, {"content-type": "image/png"})
        assert nonzero(client, "googlenet_cancelled_total") == {("batch", "cancelled"): 1}


def test_a_bug_is_counted_as_a_500() -> None:
    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        return [np.arange(9.0) for _ in batch.slices]  # there are three labels

    with service(lambda *_: fake_backend(run), raise_server_exceptions=False) as client:
        client.post("/classify", files=parts(plain("red")))
        assert (
            value(client, "googlenet_requests_total", "500", "POST", "interactive", "/classify")
            == 1
        )
        assert value(client, "googlenet_requests_in_flight") == 1


def test_readiness_and_model_metrics_follow_the_load() -> None:
    loaded = threading.Event()

    def load(*_: object) -> Backend:
        assert loaded.wait(20)
        return fake_backend(members=2)

    with TestClient(create_app(SETTINGS, load=load)) as client:
        try:
            assert value(client, "googlenet_ready") == 0
            assert counts(client, "googlenet_model_info") == {}
        finally:
            loaded.set()
        wait_ready(client)
        assert value(client, "googlenet_ready") == 1
        assert counts(client, "googlenet_model_info") == {
            ("cpu", "fake", name, "float32", "0" * 64, "1"): 1 for name in ("fake0", "fake1")
        }
        assert value(client, "googlenet_model_load_seconds", "fake") > 0
        assert value(client, "googlenet_model_warmup_seconds", "fake") == 0


def test_build_info_has_the_versions(client: TestClient) -> None:
    [(labels, one)] = counts(client, "googlenet_build_info").items()
    assert one == 1
    assert labels == (
        metadata.version("openvino"),
        platform.python_version(),
        metadata.version("torch"),
        metadata.version("googlenet-service"),
    )


def test_each_process_is_measured_by_its_own_name() -> None:
    loaded, backend = threading.Event(), fake_backend()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    backend.pid = other.pid

    def load(*_: object) -> Backend:
        assert loaded.wait(20)
        return backend

    start = "process_start_time_seconds"
    with TestClient(create_app(SETTINGS, load=load)) as client:
        try:
            assert counts(client, f"googlenet_worker_{start}") == {}  # there is no process yet
            assert value(client, start) > 0
        finally:
            loaded.set()
        wait_ready(client)
        assert value(client, f"googlenet_worker_{start}", "fake") > value(client, start)
        assert value(client, "googlenet_worker_process_resident_memory_bytes", "fake") > 1e6
        other.communicate()
        assert counts(client, f"googlenet_worker_{start}") == {}
        assert value(client, "googlenet_ready") == 1


def test_the_heartbeat_is_now_while_idle_and_stays_behind_while_a_batch_runs() -> None:
    gate = Gate()
    with service(lambda *_: fake_backend(gate)) as client:
        name = "googlenet_worker_last_heartbeat_timestamp_seconds"
        assert time.time() - value(client, name) < 1
        with ThreadPoolExecutor() as threads, gate.shut():
            threads.submit(client.post, "/classify", files=parts(plain("red")))
            assert gate.entered.wait(10)
            beats = [value(client, name), value(client, name)]
        assert beats[1] == pytest.approx(beats[0], abs=0.01)
        assert beats[1] > time.time() - 5


def test_capacity_follows_the_seconds_of_batches() -> None:
    name = "googlenet_capacity_rows_per_second"
    with service(lambda *_: fake_backend(seconds_per_row=1e-6, sizes=[1], executors=2)) as client:
        assert counts(client, name) == {
            ("fake0", "fake", side): pytest.approx(2e6) for side in ("224", "288")
        }
        client.post("/classify", files=parts(plain("red")))
        after = counts(client, name)
    assert after["fake0", "fake", "224"] < 1.99e6
    assert after["fake0", "fake", "288"] == pytest.approx(2e6)


def test_threads_are_counted_while_there_is_a_process_that_has_them() -> None:
    name, backend = "googlenet_process_threads", fake_backend()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    backend.pid = other.pid
    with other, service(lambda *_: backend, SETTINGS) as client:
        assert value(client, name, "worker") == 1
        before = value(client, name, "http")
        with ThreadPoolExecutor(20) as threads:
            started = threading.Barrier(21)
            for _ in range(20):
                threads.submit(started.wait)
            assert value(client, name, "http") == pytest.approx(before + 20, abs=3)
            started.wait(10)
        other.communicate(b"\n")
        assert math.isnan(value(client, name, "worker"))


def test_an_event_loop_that_is_blocked_is_late() -> None:
    async def scenario() -> list[float]:
        told: list[float] = []
        watching = asyncio.create_task(loop_lag.watch(told.append))
        await asyncio.sleep(0)
        time.sleep(loop_lag.EVERY + 0.2)  # noqa: ASYNC251 - what is being looked for
        await asyncio.sleep(loop_lag.EVERY + 0.1)
        watching.cancel()
        return told

    late, *others = asyncio.run(scenario())
    assert late >= 0.2
    assert all(seconds < late for seconds in others)


def test_the_lag_of_the_loop_is_watched_while_the_service_runs(client: TestClient) -> None:
    deadline = time.monotonic() + 10
    while not value(client, "googlenet_event_loop_lag_seconds_count"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="this machine has no GPU")
def test_gpu_metrics(client: TestClient) -> None:
    assert value(client, "googlenet_gpu_memory_used_bytes", "0") > 0
    assert value(client, "googlenet_gpu_memory_total_bytes", "0") > 1e9
    assert 0 <= value(client, "googlenet_gpu_utilization_ratio", "0") <= 1


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_without_a_gpu_there_are_no_gpu_samples(client: TestClient) -> None:
    gpus = [family for family in families(client) if family.name.startswith("googlenet_gpu_")]
    assert [family.samples for family in gpus] == [[], [], []]


def test_a_web_socket_is_not_counted_as_a_request() -> None:
    with TestClient(create_app(SETTINGS, load=lambda *_: fake_backend())) as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/classify"):
            pass
        assert nonzero(client, "googlenet_requests_total") == {}
