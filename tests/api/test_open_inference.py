"""The Open Inference Protocol over HTTP: metadata, inference, errors and metrics."""

import base64
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import fake_backend, wait_ready
from starlette.testclient import TestClient
from test_auth import GUARDED, KEY, named
from test_classifier import Device
from test_classify import SETTINGS, Gate, plain, service
from test_classify import client as client  # noqa: PLC0414 - a fixture
from test_classify import gate as gate  # noqa: PLC0414 - the same
from test_metrics import counts, value

from service.api.open_inference.handler import LARGE
from service.api.open_inference.paths import INFER, INFER_VERSION
from service.api.problem_details import is_inference
from service.server.app import create_app

LENGTH = "Inference-Header-Content-Length"
PATH = "/v2/models/fake/infer"
RED, BLUE = plain("red"), plain("blue")


def image(*images: bytes, **parameters: object) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def post(client: TestClient, body: object, path: str = PATH, **headers: str) -> httpx2.Response:
    return client.post(path, content=json.dumps(body), headers=headers)


def sentence(response: httpx2.Response, status: int) -> str:
    """Check that an error is as the protocol has it, and named as all answers are."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body: dict[str, str] = response.json()
    assert body.keys() == {"error"}
    assert re.fullmatch(r"[^\n]{5,250}[^.\s]", body["error"]), "no sentence"
    return body["error"]


def rows(response: httpx2.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    (output,) = response.json()["outputs"]
    probabilities: list[list[float]] = np.reshape(output["data"], output["shape"]).tolist()
    return probabilities


def parsers() -> set[int | None]:
    """Name the threads that parse bodies, of all services in this process."""
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("parse_")}


def test_a_large_body_is_parsed_in_a_thread_and_a_small_one_is_not() -> None:
    chosen = SETTINGS.model_copy(update={"max_body_bytes": 2_000_000})
    large = image(RED + bytes(LARGE))
    with service(lambda *_: fake_backend(), chosen) as client:
        before = parsers()
        assert len(rows(post(client, image(RED)))) == 1
        assert parsers() == before
        assert len(rows(post(client, large))) == 1
        assert len(parsers() - before) == 1
        invalid = client.post(PATH, content=json.dumps(large).replace("=", "*"))
        assert "base64" in sentence(invalid, 422)


# Metadata.


def test_the_server_and_its_models_are_described(client: TestClient) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "googlenet-service"
    assert server["extensions"] == ["binary_tensor_data", "classification"]
    paths = ("fake", "fake/versions/1", "fake@1", "fake@1/versions/1")
    for path in (f"/v2/models/{name}" for name in paths):
        model = client.get(path).json()
        assert model["versions"] == ["1"]
        assert {tensor["name"]: tensor["shape"] for tensor in model["inputs"]} == {
            "image": [-1],
            "pixels": [-1, -1, -1, 3],
            "tensor": [-1, 3, 224, 224],
        }
        assert model["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
        assert client.get(f"{path}/ready").json()["ready"] is True


@pytest.mark.parametrize("path", ["/v2/models/no", "/v2/models/fake/versions/2"])
def test_a_model_that_is_not_served_is_unknown(path: str, client: TestClient) -> None:
    for answer in (
        client.get(path),
        client.get(f"{path}/ready"),
        post(client, {}, f"{path}/infer"),
    ):
        assert "there is no model" in sentence(answer, 404)


def test_a_server_is_ready_until_it_leaves_or_its_model_is_at_a_standstill() -> None:
    backend, leaving = fake_backend(), False
    with TestClient(
        create_app(SETTINGS, load=lambda *_: backend, is_leaving=lambda: leaving)
    ) as client:
        wait_ready(client)

        def states() -> list[tuple[int, bool]]:
            paths = {"health/live": "live", "health/ready": "ready", "models/fake/ready": "ready"}
            answers = [(client.get(f"/v2/{path}"), name) for path, name in paths.items()]
            return [(answer.status_code, answer.json()[name]) for answer, name in answers]

        assert states() == [(200, True)] * 3
        leaving = True
        assert states() == [(200, True), (503, False), (200, True)]
        backend.stalled = 99.0
        assert states() == [(503, False)] * 3


# Inference.


def test_images_are_answered_in_their_order(client: TestClient) -> None:
    answer = post(client, image(RED, BLUE) | {"id": "7"})
    assert rows(answer) == [[1, 0, 0], [0, 0, 1]]
    body = answer.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("7", "fake", "1")
    assert body["parameters"] == {"views": "ten"}
    assert re.fullmatch(r"decode;dur=.*, queue;dur=.*, inference;dur=.*",
                        answer.headers["server-timing"])  # fmt: skip


def test_labels_and_binary_values_are_returned_where_requested(client: TestClient) -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}}
    answer = post(client, image(BLUE) | {"outputs": [wanted]})
    assert answer.headers["content-type"] == "application/octet-stream"
    ends = int(answer.headers[LENGTH])
    assert json.loads(answer.content[:ends])["outputs"][0]["shape"] == [1, 2]
    assert answer.content[ends:] == b"\x11\0\0\0" + b"1.00000000:2:blue"[:17] + (
        b"\x10\0\0\0" + b"0.00000000:0:red"
    )


def test_features_come_from_the_rows_of_the_probabilities_they_are_asked_with() -> None:
    """In JSON and binary; the fake model's are the mean colour."""
    device = Device()
    backend = fake_backend(device.run, explains=True)
    outputs = [{"name": "features", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    with service(lambda *_: backend) as client:
        described = client.get("/v2/models/fake").json()["outputs"]
        assert described[1] == {"name": "features", "datatype": "FP32", "shape": [-1, 3]}
        before = len(device.batches)
        answer = post(client, image(RED, BLUE, views="single") | {"outputs": outputs})
        assert sum(batch.rows for batch in device.batches[before:]) == 2
        ends = int(answer.headers[LENGTH])
        features, probabilities = json.loads(answer.content[:ends])["outputs"]
        assert (features["name"], features["shape"]) == ("features", [2, 3])
        assert np.frombuffer(answer.content[ends:], "<f4").tolist() == [255, 0, 0, 0, 0, 255]
        assert probabilities["data"] == [1, 0, 0, 0, 0, 1]


def test_a_model_without_features_refuses_them(client: TestClient) -> None:
    refused = post(client, image(RED) | {"outputs": [{"name": "features"}]})
    assert "has no features" in sentence(refused, 501)


def test_binary_pixels_are_answered_as_their_image_is(client: TestClient) -> None:
    pixels = np.full((1, 4, 5, 3), (0, 0, 255), np.uint8)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [*pixels.shape],
              "parameters": {"binary_data_size": pixels.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = client.post(PATH, content=head + pixels.tobytes(), headers={LENGTH: str(len(head))})
    assert rows(answer) == rows(post(client, image(BLUE)))


@pytest.mark.parametrize(("views", "chosen"), [("auto", "paper"), ("single", "single")])
def test_a_request_may_choose_its_views_or_leave_them_to_the_time_left(
    views: str, chosen: str, client: TestClient
) -> None:
    before = counts(client, "googlenet_images_total").get(("ok", chosen), 0)
    answer = post(client, image(RED, views=views), f"{PATH[:-6]}/versions/1/infer")
    assert answer.json()["parameters"] == {"views": chosen}
    assert value(client, "googlenet_images_total", "ok", chosen) == before + 1


# Errors.


def test_an_error_has_the_protocols_body(client: TestClient) -> None:
    cut = plain("red")[:40]
    assert "broken" in sentence(post(client, image(cut)), 422)
    assert sentence(post(client, image(RED, cut)), 422).startswith("row 1: ")
    assert "not a JPEG" in sentence(post(client, image(b"no image")), 415)
    assert "has 4 images and may have 3" in sentence(post(client, image(*[RED] * 4)), 413)
    assert "over 1000000 pixels" in sentence(post(client, image(plain("red", 1001, 1000))), 413)
    assert "the body: Invalid JSON" in sentence(client.post(PATH, content=b"{"), 400)
    assert sentence(client.post(PATH, content=b"x" * 100_001), 413).startswith(
        "the body has 100001"
    )
    compressed = post(client, image(RED), **{"content-encoding": "gzip"})
    assert "compressed" in sentence(compressed, 415)
    header = sentence(post(client, image(RED), **{LENGTH: "x"}), 422)
    assert header == f"{LENGTH}: String should match pattern '^[0-9]{{1,12}}$'"
    assert compressed.headers["accept-encoding"] == "identity"
    assert "nothing at this path" in sentence(client.get("/v2/nothing"), 404)
    assert sentence(client.put(PATH), 405) == "PUT is not allowed here; use POST"
    assert sentence(client.get("/v2/models/%00"), 422).startswith("name: ")


def test_other_paths_keep_their_problems(client: TestClient) -> None:
    for path in ("/v22", "/v1", "/classify"):
        assert not is_inference(path)
        assert client.get(path).headers["content-type"] == "application/problem+json"


def test_a_timeout_is_in_microseconds_and_includes_the_upload(
    gate: Gate, client: TestClient
) -> None:
    assert "was being sent" in sentence(post(client, image(RED, timeout=1)), 504)
    with gate.shut():
        late = post(client, image(RED, timeout=50_000, views="single"))
    assert "before the deadline" in sentence(late, 504)


def test_overload_is_refused_before_the_body_is_read_with_the_time_to_wait(gate: Gate) -> None:
    """A row costs a second: one is done in time, two are not, and ten never are."""
    slow = SETTINGS.model_copy(update={"timeout_seconds": 1.5, "views": "single"})
    with (
        service(lambda *_: fake_backend(gate, seconds_per_row=1.0), slow) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        with gate.shut():
            first = thread.submit(post, client, image(RED))
            assert gate.entered.wait(20)
            refused = client.post(PATH, content=b"no JSON")
        assert sentence(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
    never = SETTINGS.model_copy(update={"timeout_seconds": 2.0})
    with service(lambda *_: fake_backend(seconds_per_row=3.0), never) as client:
        for path, template in ((PATH, INFER), ("/v2/models/fake/versions/1/infer", INFER_VERSION)):
            sentence(client.post(path, content=b"no JSON"), 504)
            series = ("googlenet_requests_total", "504", "POST", "interactive", template)
            assert value(client, *series) == 1


def test_a_tensor_takes_four_bytes_of_memory_a_value() -> None:
    small = SETTINGS.model_copy(update={"max_queue_bytes": 200_000, "max_body_bytes": 1_000_000})
    tensor = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, 224, 224]}
    with service(lambda *_: fake_backend(), small) as client:
        assert rows(post(client, image(RED, views="single"))) == [[1, 0, 0]]
        refused = post(client, {"inputs": [tensor | {"data": [0] * 150_528}]})
        assert "602112 bytes, and the limit is 200000" in sentence(refused, 413)


# Keys, metrics, log.


def test_a_key_is_needed_except_for_health() -> None:
    with service(lambda *_: fake_backend(), GUARDED) as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for answer in (client.get("/v2"), client.get("/v2/models/fake"), post(client, image(RED))):
            assert "send your API key" in sentence(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert rows(post(client, image(RED), **named(KEY))) == [[1, 0, 0]]


def test_requests_are_counted_by_template_and_logged_as_those_of_classify_are(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    series = ("googlenet_requests_total", "200", "POST", "interactive", INFER)
    before = counts(client, series[0]).get(series[1:], 0)
    with caplog.at_level(logging.INFO, logger="service.api.middleware.request_log"):
        post(client, image(RED, BLUE))
        client.get("/v2/health/live")
    assert value(client, *series) == before + 1
    (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
    assert (line["route"], line["views"], line["images"]) == (INFER, "ten", 2)
    assert {"upload", "decode", "queue", "inference", "batch_rows"} <= line.keys()


def test_a_notice_comes_with_every_answer() -> None:
    backend = fake_backend()
    members = tuple(replace(member, notice="only fake") for member in backend.ensemble.members)
    backend.ensemble = replace(backend.ensemble, members=members)
    with service(lambda *_: backend) as client:
        assert post(client, image(RED)).json()["parameters"]["notice"] == "only fake"
