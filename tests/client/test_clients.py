"""Triton's and KServe's clients of the Open Inference Protocol get the results of /classify."""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import ROOT, missing, serving, wait_ready

from service.api.auth import api_keys
from service.bench.process import free_port
from service.imaging.image_decoder import decode
from service.models.store import Store

PYTHON = ROOT / ".venv-clients/bin/python"
CLIENTS = [(maker, way) for maker in ("triton", "kserve") for way in ("http", "grpc")]
KEY = api_keys.new()
HEADERS = {"x-api-key": KEY}
MODEL = "bvlc_googlenet"


@dataclass(frozen=True)
class Ports:
    """The service's ports."""

    http: int
    grpc: int


@pytest.fixture(scope="module")
def ports(real_store: Store) -> Iterator[Ports]:
    """A ready process with the real weights in float32, an API key and gRPC."""
    if not PYTHON.exists():
        missing("the clients' environment (make clients)")
    port = free_port()
    small = (
        "--max-batch",
        "4",
        "--cpu-threads",
        "1",
        "--precision",
        "float32",
        "--views",
        "single",
    )
    digest = f"web:{api_keys.digest(KEY.encode()).hex()}"
    with serving(
        "--model", MODEL, "--model-store", str(real_store.root), *small,
        "--grpc-port", str(port), "--api-key-hashes", digest,
    ) as process:  # fmt: skip
        with httpx2.Client(base_url=f"http://127.0.0.1:{process.port}") as client:
            wait_ready(client)
        yield Ports(process.port, port)


Ask = Callable[..., list[Any]]


@pytest.fixture(params=CLIENTS, ids="-".join)
def ask(request: pytest.FixtureRequest, ports: Ports) -> Ask:
    """Make calls with one of the clients; returns their results."""
    maker, way = request.param
    port = ports.http if way == "http" else ports.grpc

    def ask(*calls: dict[str, Any]) -> list[Any]:
        common = {"model": MODEL, "binary": True, "headers": HEADERS}
        done = subprocess.run(  # noqa: S603 - our script
            [PYTHON, ROOT / "tests/clients.py", maker, way, f"127.0.0.1:{port}"],
            input=json.dumps([common | call for call in calls]),
            capture_output=True, text=True, timeout=100, check=False, env={},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout)
        return answers

    return ask


def sent(*images: bytes) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


def image(*images: bytes, **other: Any) -> dict[str, Any]:
    return {"input": "image", "datatype": "BYTES", "data": sent(*images)} | other


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(shared.glob("photos/flickr/*.jpg"))[:3]]


@pytest.fixture(scope="module")
def classified(ports: Ports, photos: list[bytes]) -> list[list[dict[str, Any]]]:
    """The predictions of /classify for each photo."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{ports.http}", headers=HEADERS) as client:
        kind = {"content-type": "image/jpeg"}
        answers = [client.post("/classify", content=photo, headers=kind).json() for photo in photos]
    return [answer["predictions"] for answer in answers]


def check_probabilities(rows: list[list[float]], wanted: list[list[dict[str, Any]]]) -> None:
    assert len(rows) == len(wanted)
    for row, predictions in zip(rows, wanted, strict=True):
        best = np.argsort(row)[::-1][:5]
        assert best.tolist() == [prediction["index"] for prediction in predictions]
        expected = [prediction["probability"] for prediction in predictions]
        assert [row[index] for index in best] == pytest.approx(expected, abs=1e-6)


def check_labels(rows: list[list[str]], wanted: list[list[dict[str, Any]]]) -> None:
    for row, predictions in zip(rows, wanted, strict=True):
        parts = [label.split(":", 2) for label in row]
        assert [label for _, _, label in parts] == [
            prediction["label"] for prediction in predictions
        ]
        assert [int(index) for _, index, _ in parts] == [
            prediction["index"] for prediction in predictions
        ]
        expected = [prediction["probability"] for prediction in predictions]
        assert [float(value) for value, _, _ in parts] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_every_client_gets_the_results_of_classify(
    ask: Ask, photos: list[bytes], classified: list[list[dict[str, Any]]], request: Any
) -> None:
    """One image and several, raw and in JSON, as a file, as pixels and as a tensor."""
    few = photos[:2]
    if "http" in request.node.callspec.id:  # gRPC has no JSON
        in_json = image(*(text.encode() for text in sent(*few)), binary=False)
    else:
        in_json = image(*few)
    whole = np.asarray(decode(photos[0], max_pixels=10**8))
    view = decode(photos[0], max_pixels=10**8, min_side=512).resize(
        (224, 224), 2, _centre(photos[0])
    )
    tensor = np.asarray(view)[:, :, ::-1].astype(np.float32) - np.float32([104, 117, 123])
    found = ask(
        {"about": True},
        image(*photos, id="seven"),
        image(*photos, classification=5),
        in_json,
        {"input": "pixels", "datatype": "UINT8", "shape": [1, *whole.shape],
         "data": sent(whole.tobytes())},
        {"input": "tensor", "datatype": "FP32", "shape": [1, 3, 224, 224],
         "data": sent(tensor.transpose(2, 0, 1).tobytes())},
        {"input": "tensor", "datatype": "FP32", "shape": [1, 3, 224, 224], "binary": False,
         "data": sent(tensor.transpose(2, 0, 1).tobytes())},
    )  # fmt: skip
    about, probabilities, labels, others, pixels, raw, listed = found
    assert {about["live"], about["ready"], about["model_ready"]} == {True}
    assert about.get("sizes", [1000, 1024]) == [1000, 1024]
    check_probabilities(probabilities["output"], classified)
    assert probabilities["id"] == "seven"
    check_labels(labels["output"], classified)
    check_probabilities(others["output"], classified[:2])
    # Decoded pixels are resized from full size; a JPEG may be decoded at half its size.
    assert np.argmax(pixels["output"][0]) == classified[0][0]["index"]
    check_probabilities(raw["output"], classified[:1])
    check_probabilities(listed["output"], classified[:1])


def test_every_client_gets_the_features_of_embed(
    ask: Ask, photos: list[bytes], classified: list[list[dict[str, Any]]], ports: Ports
) -> None:
    """With the probabilities or labels of the same rows."""
    photos, url = photos[:2], f"http://127.0.0.1:{ports.http}/embed"
    with httpx2.Client(headers=HEADERS | {"content-type": "image/jpeg"}) as client:
        rows = [client.post(url, content=photo).json()["features"] for photo in photos]
    both, labels = ask(
        image(*photos, features=True), image(*photos, features=True, classification=5)
    )
    for answer in (both, labels):
        assert np.array(answer["features"]) == pytest.approx(np.array(rows), abs=1e-4)
    check_probabilities(both["output"], classified[:2])
    check_labels(labels["output"], classified[:2])


def _centre(photo: bytes) -> tuple[float, float, float, float]:
    """The box of a whole photo's centre 224 of 256 pixels."""
    width, height = decode(photo, max_pixels=10**8, min_side=512).size
    return (width / 16, height / 16, width * 15 / 16, height * 15 / 16)


def test_every_client_gets_error_messages(ask: Ask, beagle: bytes) -> None:
    found = ask(
        image(beagle, model="other"),
        image(beagle[:5000]),
        image(*[beagle] * 17),
        image(beagle, beagle[:5000]),
        {"input": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 1], "data": sent(bytes(4))},
        {"input": "tensor", "datatype": "UINT8", "shape": [4], "data": sent(bytes(4))},
        image(beagle, parameters={"views": "none"}),
        image(beagle, headers={"x-api-key": "nobody's"}),
    )
    sentences = [
        "there is no model 'other' here",
        "the JPEG image is broken or cut short",
        "has 17 images and may have 16",
        "row 1: the JPEG image is broken",
        "the shape of pixels must be [-1, -1, -1, 3]",
        "tensor must be FP32",
        "views must be one of",
        "send your API key",
    ]
    for answer, sentence in zip(found, sentences, strict=True):
        assert sentence in answer["error"]


def test_a_deadline_that_is_too_short_is_refused(ports: Ports, beagle: bytes) -> None:
    for way, port in (("http", ports.http), ("grpc", ports.grpc)):
        call = image(beagle, model=MODEL, binary=True, headers=HEADERS, timeout=4000)
        done = subprocess.run(  # noqa: S603 - the same
            [PYTHON, ROOT / "tests/clients.py", "triton", way, f"127.0.0.1:{port}"],
            input=json.dumps([call]),
            capture_output=True, text=True, timeout=60, check=True, env={},
        )  # fmt: skip
        (answer,) = json.loads(done.stdout)
        assert "more than the 0.00 s it has" in answer["error"], way
