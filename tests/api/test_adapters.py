"""Other servers' APIs: their own clients get the labels that /classify gives."""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import ROOT, Served, colour_or_map, fake_backend, missing, serving, wait_ready
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient
from test_auth import GUARDED
from test_classify import SETTINGS, Gate, assert_problem, plain, service

from service.api.adapters.routers import ROUTERS
from service.models.store import Store
from service.server.app import create_app
from service.settings import Settings

ADAPTERS = ",".join(ROUTERS)
ADAPTED = SETTINGS.model_copy(update={"adapters": ADAPTERS})
MODEL = "bvlc_googlenet"
RED = plain("red")
JSON = {"content-type": "application/json"}
# What curl sends of itself: nothing with -T, a form with --data-binary.
UNTYPED: list[dict[str, str]] = [{}, {"content-type": "application/x-www-form-urlencoded"}]


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


Labels = Sequence[tuple[str, float]]


@pytest.fixture(scope="module")
def adapted(real_store: Store) -> Iterator[Served]:
    """A ready process on the real weights, with every adapter."""
    small = ("--max-batch", "4", "--cpu-threads", "1", "--precision", "float32")
    store = ("--model", MODEL, "--model-store", str(real_store.root))
    with serving(*store, *small, "--adapters", ADAPTERS) as ours:
        with httpx2.Client(base_url=url(ours)) as client:
            wait_ready(client)
        yield ours


def url(served: Served) -> str:
    return f"http://127.0.0.1:{served.port}"


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Path]:
    """Three photos."""
    return [shared / f"photos/flickr/{name}.jpg" for name in ("beagle", "koala", "tractor")]


@pytest.fixture(scope="module")
def classified(adapted: Served, photos: list[Path]) -> list[Labels]:
    """What /classify says of them."""
    with httpx2.Client(base_url=url(adapted)) as client:
        answers = [client.post("/classify", files={"file": it.read_bytes()}) for it in photos]
    return [
        [(top["label"], top["probability"]) for top in answer.json()["predictions"]]
        for answer in answers
    ]


def assert_same(ours: Labels, theirs: Labels) -> None:
    assert [label for label, _ in ours] == [label for label, _ in theirs]
    assert [share for _, share in ours] == pytest.approx([share for _, share in theirs], abs=1e-6)


def test_hugging_faces_client_gets_the_same_labels(
    adapted: Served, photos: list[Path], classified: list[Labels]
) -> None:
    client = InferenceClient(f"{url(adapted)}/models/{MODEL}")
    for photo, wanted in zip(photos, classified, strict=True):
        found = client.image_classification(photo)
        assert_same([(one.label, one.score) for one in found], wanted)
        best = client.image_classification(photo.read_bytes(), top_k=3, function_to_apply="softmax")
        assert_same([(one.label, one.score) for one in best], wanted[:3])


@pytest.mark.parametrize("arguments", [["-T"], ["-X", "POST", "-T"], ["-F"], ["--data-binary"]])
def test_curl_gets_the_same_labels_of_torchserve(
    arguments: list[str], adapted: Served, photos: list[Path], classified: list[Labels]
) -> None:
    prefix = {"-F": "data=@", "--data-binary": "@"}.get(arguments[-1], "")
    for path in (MODEL, f"{MODEL}/1"):
        target = f"{url(adapted)}/predictions/{path}"
        for photo, wanted in zip(photos, classified, strict=True):
            done = subprocess.run(  # noqa: S603 - a photo of ours, to our process
                ["curl", "-sSf", *arguments, f"{prefix}{photo}", target],  # noqa: S607 - any curl
                capture_output=True, check=True, timeout=60,
            )  # fmt: skip
            assert_same([*json.loads(done.stdout).items()], wanted)


def test_torchserves_ping_needs_no_key_and_is_that_of_readiness() -> None:
    leaving = [False]
    guarded = GUARDED.model_copy(update={"adapters": ADAPTERS})
    app = create_app(guarded, load=lambda *_: fake_backend(), is_leaving=lambda: leaving[0])
    with TestClient(app) as client:
        wait_ready(client)
        assert client.get("/ping").json() == {"status": "Healthy"}
        assert_problem(client.put("/predictions/fake", content=RED), 401, "unauthorized")
        leaving[0] = True
        answer = client.get("/ping")
        assert (answer.status_code, answer.json()) == (503, {"status": "Unhealthy"})


def test_kserves_client_gets_the_same_labels(
    adapted: Served, photos: list[Path], classified: list[Labels]
) -> None:
    python = ROOT / ".venv-clients/bin/python"
    if not python.exists():
        missing("KServe's client (make tools)")
    images = [encoded(photo.read_bytes()) for photo in photos]
    shapes: list[Callable[[str], Any]] = [
        lambda image: image,
        lambda image: {"b64": image},
        lambda image: {"image": {"b64": image}},
    ]
    bodies = [{"instances": [*map(shape, images)]} for shape in shapes]
    done = subprocess.run(  # noqa: S603 - our script
        [python, ROOT / "tests/clients.py", "kserve", "v1", f"127.0.0.1:{adapted.port}"],
        input=json.dumps([{"model": MODEL, "body": body} for body in bodies]),
        capture_output=True, text=True, timeout=100, check=True, env={},
    )  # fmt: skip
    for answer in json.loads(done.stdout):
        assert answer["ready"] is True
        for ranking, wanted in zip(answer["predictions"], classified, strict=True):
            assert_same([(one["label"], one["probability"]) for one in ranking], wanted)


def test_models_are_listed_and_ready_by_kserves_protocol(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {"models": ["fake"]}
    assert client.get("/v1/models/fake").json() == {"name": "fake", "ready": True}
    assert_problem(client.get("/v1/models/other"), 404, "unknown_model")
    assert client.get("/v1/models/fake:predict").headers["allow"] == "POST"


# What is refused.


@pytest.fixture(scope="module")
def gate() -> Gate:
    """The executor of `client`."""
    return Gate()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of a ready service on a fake model, with every adapter."""
    with service(lambda *_: fake_backend(colour_or_map), ADAPTED) as client:
        yield client


def test_hugging_faces_parameters_may_be_null(client: TestClient) -> None:
    body = {"inputs": encoded(RED), "parameters": {"top_k": 1, "function_to_apply": None}}
    (best,) = client.post("/models/fake", json=body).json()
    assert (best["label"], best.keys()) == ("red", {"label", "score"})


HUGGING_FACE = "/models/fake"
PREDICT = "/v1/models/fake:predict"
GOOD = encoded(RED)
REFUSED: list[tuple[str, Any, int, str, str]] = [
    (HUGGING_FACE, {"inputs": "***"}, 422, "invalid_parameter", "inputs[0] is not base64"),
    (HUGGING_FACE, {"images": [GOOD]}, 422, "invalid_parameter", "inputs: "),
    (HUGGING_FACE, {"inputs": encoded(b"text")}, 415, "unsupported_type", ""),
    (HUGGING_FACE, {"inputs": ""}, 400, "malformed", "an image is empty"),
    (HUGGING_FACE, {"inputs": GOOD, "parameters": {"top_k": 0}}, 422, "invalid_parameter",
     "parameters.top_k: "),
    (HUGGING_FACE, {"inputs": GOOD, "parameters": {"function_to_apply": "sigmoid"}}, 422,
     "invalid_parameter", "parameters.function_to_apply: "),
    ("/predictions/fake", {"images": [GOOD, GOOD]}, 413, "too_large", ""),
    ("/predictions/fake@1/2", {"images": [GOOD]}, 404, "unknown_model", ""),
    ("/predictions/fake/2", {"images": [GOOD]}, 404, "unknown_model", ""),
    (PREDICT, {"instances": [GOOD, "***"]}, 422, "invalid_parameter", "instances[1] is not base64"),
    (PREDICT, {"instances": [{"url": GOOD}]}, 422, "invalid_parameter", "instances[0] must be "),
    (PREDICT, {"instances": []}, 422, "invalid_parameter", "instances: "),
    (PREDICT, {"instances": [GOOD] * 4}, 413, "too_large", "the request has over 3 images"),
    ("/models/other", {"inputs": GOOD}, 404, "unknown_model", ""),
]  # fmt: skip


@pytest.mark.parametrize("sent", REFUSED)
def test_a_bad_request_is_refused(sent: tuple[str, Any, int, str, str], client: TestClient) -> None:
    path, body, status, code, sentence = sent
    problem = assert_problem(client.post(path, json=body), status, code)
    assert problem["detail"].startswith(sentence)


PREDICTIONS = "/predictions/fake"
IMAGES = [("POST", HUGGING_FACE), ("POST", PREDICTIONS), ("PUT", PREDICTIONS)]


@pytest.mark.parametrize("headers", UNTYPED)
@pytest.mark.parametrize(("method", "path"), IMAGES)
def test_an_image_needs_no_type(
    method: str, path: str, headers: dict[str, str], client: TestClient
) -> None:
    answer = client.request(method, path, content=RED, headers=headers)
    assert "red" in answer.text
    assert_problem(client.request(method, path, headers=headers), 400, "malformed")


@pytest.mark.parametrize(("method", "path"), IMAGES)
def test_overload_is_refused_before_the_body_is_read(method: str, path: str) -> None:
    with service(lambda *_: fake_backend(seconds_per_row=100), ADAPTED) as client:
        headers = {"content-type": "text/plain", "x-timeout-ms": "10"}
        answer = client.request(method, path, content=b"x", headers=headers)
        assert_problem(answer, 504, "deadline_exceeded")


def test_adapters_are_off_by_default_and_named_by_the_setting() -> None:
    with service(lambda *_: fake_backend()) as client:
        assert_problem(client.post(HUGGING_FACE, content=RED), 405, "method_not_allowed")
        assert not re.search("tags", json.dumps(client.get("/openapi.json").json()))
    for name in ROUTERS:
        assert Settings(adapters=name).adapters == name
    with pytest.raises(ValueError, match="adapters"):
        Settings(adapters="seldon")
