"""POST /classify and GET /models: every response, and every refusal."""

import io
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import fake_backend, mean_colour, wait_ready
from PIL import Image, ImageCms
from starlette.testclient import TestClient

from service.api import statuses
from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.models.store import Store
from service.scheduling.types import Batch
from service.server.app import create_app
from service.serving.backend import Backend
from service.serving.factory import LoadBackend
from service.settings import Settings

SETTINGS = Settings(
    model="fake",
    views="ten",
    max_pixels=1_000_000,
    max_body_bytes=100_000,
    max_images_per_request=3,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(colour: str, width: int = 8, height: int = 8) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour))


def parts(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{n}.png", image)) for n, image in enumerate(images)]


def top(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    label: str = response.json()["predictions"][0]["label"]
    return label


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Check a problem against RFC 9457, its status and its request; its detail is a sentence."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() - {"retry_after_ms"} == {
        *("type", "title", "status", "detail", "code", "instance")
    }
    assert_describes(problem, status, code)
    name = response.headers["x-request-id"]
    assert problem["instance"] == f"urn:googlenet-service:request:{name}"
    return problem


def assert_describes(problem: dict[str, Any], status: int, code: str) -> None:
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:googlenet-service:problem:{code}"
    assert problem["title"]
    assert re.fullmatch(r"[^\n]{5,250}[^.\s]", problem["detail"]), "no sentence"
    assert not re.search(r"\.\s|Traceback|Error|/work|site-packages", problem["detail"])


class Gate:
    """A fake executor that can be shut: its batches wait until it is opened again."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()
        self._opened.set()

    def __call__(self, batch: Batch[PreparedImage]) -> list[Probabilities]:
        """Run a batch, once the gate is open."""
        self.entered.set()
        assert self._opened.wait(20)
        return mean_colour(batch)

    def open(self) -> None:
        """Let through all that waits, and what comes."""
        self._opened.set()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Let nothing through; afterwards all of it."""
        self._opened.clear()
        self.entered.clear()
        try:
            yield
        finally:
            self.open()


@contextmanager
def service(
    load: LoadBackend, settings: Settings = SETTINGS, **options: Any
) -> Iterator[TestClient]:
    with TestClient(create_app(settings, load=load), **options) as client:
        wait_ready(client)
        yield client


@pytest.fixture(scope="module")
def gate() -> Gate:
    """The executor of `client`."""
    return Gate()


@pytest.fixture(scope="module")
def client(gate: Gate) -> Iterator[TestClient]:
    """A client of a ready service on a fake model."""
    with service(lambda *_: fake_backend(gate)) as client:
        yield client


# What is answered, by the real weights.


def test_one_image_is_answered_with_its_ranking(real_client: TestClient, beagle: bytes) -> None:
    response = real_client.post("/classify", files={"file": ("beagle.jpg", beagle)})
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["model", "version", "views", "view_count", "predictions"]
    assert (body["model"], body["version"]) == ("bvlc_googlenet", "1")
    assert (body["views"], body["view_count"]) == ("adaptive", 1)  # it is sure at once
    assert [list(prediction) for prediction in body["predictions"]] == [
        ["label", "wnid", "index", "probability", "broader"]
    ] * 5
    first = body["predictions"][0]
    assert (first["label"], first["wnid"], first["index"]) == ("beagle", "n02088364", 162)
    assert 0.5 < first["probability"] < 1


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "image/x-unheard-of"])
def test_a_raw_body_is_answered_as_a_part_is(
    kind: str, real_client: TestClient, beagle: bytes
) -> None:
    as_part = real_client.post("/classify?views=single", files={"file": beagle})
    raw = real_client.post("/classify?views=single", content=beagle, headers={"content-type": kind})
    assert top(raw) == "beagle"
    for ours, theirs in zip(raw.json()["predictions"], as_part.json()["predictions"], strict=True):
        assert ours.pop("probability") == pytest.approx(theirs.pop("probability"), abs=1e-5)
        assert ours == theirs


@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_top_k_labels_are_returned(top_k: int, real_client: TestClient, beagle: bytes) -> None:
    response = real_client.post(
        "/classify", params={"views": "single", "top_k": top_k}, files={"file": beagle}
    )
    assert top(response) == "beagle"
    predictions = response.json()["predictions"]
    probabilities = [prediction["probability"] for prediction in predictions]
    assert len({prediction["index"] for prediction in predictions}) == top_k
    assert probabilities == sorted(probabilities, reverse=True)
    if top_k == 1000:
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def patient_client(real_store: Store) -> Iterator[TestClient]:
    """A client of the real service that has time for the paper's 144 views."""
    settings = Settings(
        model="bvlc_googlenet",
        model_store=real_store.root,
        device="cpu",
        max_batch=4,
        cpu_threads=1,
        timeout_seconds=300,
    )
    with TestClient(create_app(settings)) as client:
        wait_ready(client)
        yield client


LOOKED_AT = {  # views of a clear image
    "single": 1, "ten": 10, "dense": 2, "paper": 144, "adaptive": 1, "adaptive:paper": 16
}  # fmt: skip


@pytest.mark.parametrize(("views", "count"), LOOKED_AT.items())
def test_every_plan_of_views_is_answered(
    views: str, count: int, patient_client: TestClient, beagle: bytes
) -> None:
    response = patient_client.post("/classify", params={"views": views}, files={"file": beagle})
    assert top(response) == "beagle"
    assert (response.json()["views"], response.json()["view_count"]) == (views, count)


def test_several_images_are_answered_in_their_order(real_client: TestClient, shared: Path) -> None:
    names = ["tractor", "koala", "beagle"]
    photos = [(shared / f"photos/flickr/{name}.jpg").read_bytes() for name in names]
    response = real_client.post(
        "/classify?views=single&top_k=1",
        files=[("file", (f"{name}.jpg", photo)) for name, photo in zip(names, photos, strict=True)],
    )
    body = response.json()
    assert list(body) == ["model", "version", "views", "results"]
    assert (body["model"], body["views"]) == ("bvlc_googlenet", "single")
    assert [list(result) for result in body["results"]] == [
        ["filename", "view_count", "predictions"]
    ] * 3
    assert [result["filename"] for result in body["results"]] == [f"{name}.jpg" for name in names]
    assert [result["predictions"][0]["label"] for result in body["results"]] == names


def test_a_bad_image_between_good_ones_has_its_own_problem(
    real_client: TestClient, beagle: bytes
) -> None:
    files = [
        ("file", ("first.jpg", beagle)),
        ("file", ("text.jpg", b"no image at all")),
        ("file", ("cut.jpg", beagle[:9999])),
        ("file", ("last.jpg", beagle)),
    ]
    response = real_client.post("/classify?views=single", files=files)
    assert response.status_code == 200
    first, text, cut, last = response.json()["results"]
    assert first["predictions"][0]["label"] == last["predictions"][0]["label"] == "beagle"
    assert list(text) == list(cut) == ["filename", "error"]
    assert (text["filename"], cut["filename"]) == ("text.jpg", "cut.jpg")
    assert_describes(text["error"], 415, "unsupported_type")
    assert_describes(cut["error"], 422, "unreadable_image")


def test_server_timing_has_the_stages(client: TestClient) -> None:
    stages = "decode;dur={0}, queue;dur={0}, inference;dur={0}, batch;desc={1}"
    for images, pattern in (
        ([plain("red")], stages.format(r"\d+\.\d\d", '"1 row"')),
        ([b"no", b"images"], stages.format(r"0\.00", '"0 rows"')),
    ):
        response = client.post("/classify?views=single", files=parts(*images))
        assert response.status_code == 200
        assert re.fullmatch(pattern, response.headers["server-timing"])


def test_the_models_are_listed(real_client: TestClient, real_store: Store) -> None:
    assert real_client.get("/models").json() == {
        "default": "bvlc_googlenet",
        "shadow": None,
        "models": [
            {
                "name": "bvlc_googlenet",
                "version": "1",
                "notice": None,
                "device": "cpu",
                "precision": "float32",
                "classes": 1000,
                "views": ["single", "ten", "paper", "dense", "adaptive", "adaptive:paper", "auto"],
                "default_views": "adaptive",
                "explains": True,
                "label_sets": [],
                "members": [
                    {
                        "name": "bvlc_googlenet",
                        "version": "1",
                        "architecture": "googlenet",
                        "sha256": real_store.verify("bvlc_googlenet"),
                    }
                ],
            }
        ],
    }


def test_the_members_of_an_ensemble_are_listed_and_averaged() -> None:
    with service(lambda *_: fake_backend(members=2)) as client:
        (model,) = client.get("/models").json()["models"]
        assert [member["name"] for member in model["members"]] == ["fake0", "fake1"]
        response = client.post("/classify", files=parts(plain("lime")))
    assert response.json()["model"] == "fake0,fake1"
    assert response.json()["predictions"][0] == {
        "label": "green", "wnid": None, "index": 1, "probability": pytest.approx(1),
        "broader": None,
    }  # fmt: skip


# The request's name and its deadline.


@pytest.mark.parametrize("name", ["a", "0123.abc_DEF-9", "x" * 128])
def test_a_sane_request_id_is_echoed(name: str, client: TestClient) -> None:
    response = client.get("/models", headers={"x-request-id": name})
    assert response.headers["x-request-id"] == name


def test_requests_without_an_id_get_different_ids(client: TestClient) -> None:
    assert len({client.get("/models").headers["x-request-id"] for _ in range(3)}) == 3


def test_a_deadline_that_passes_while_an_image_waits_is_a_504(
    gate: Gate, client: TestClient
) -> None:
    with gate.shut():
        response = client.post(
            "/classify?views=single", files=parts(plain("red")), headers={"x-timeout-ms": "50"}
        )
    assert_problem(response, 504, "deadline_exceeded")


@pytest.mark.parametrize(("own", "status"), [({"x-timeout-ms": "100"}, 504), ({}, 200)])
def test_a_clients_timeout_includes_the_upload(
    own: dict[str, str], status: int, client: TestClient
) -> None:
    def slowly() -> Iterator[bytes]:
        time.sleep(0.2)
        yield plain("red")

    headers = {"content-type": "image/png", **own}
    response = client.post("/classify?views=single", content=slowly(), headers=headers)
    assert response.status_code == status
    assert "was being sent" in response.text or status == 200


# Bad input, each while a good image is in flight.

JPEG = {"content-type": "image/jpeg"}
BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
)


def multipart(body: bytes, content_type: str = "multipart/form-data; boundary=b") -> dict[str, Any]:
    return {"content": body, "headers": {"content-type": content_type}}


WHOLE = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "an empty body": ({"content": b"", "headers": JPEG}, 400, "malformed"),
    "an empty image": ({"files": parts(b"")}, 400, "malformed"),
    "a broken header of a part": (multipart(b"--b\r\n@ \r\n\r\nx\r\n--b--"), 400, "malformed"),
    "a cut multipart body": (multipart(WHOLE[:-9]), 400, "malformed"),
    "no boundary": (multipart(WHOLE, "multipart/form-data"), 400, "malformed"),
    "an empty boundary": (multipart(WHOLE, "multipart/form-data; boundary="), 400, "malformed"),
    "another boundary": (multipart(WHOLE, "multipart/form-data; boundary=c"), 400, "malformed"),
    "a long boundary": (
        multipart(WHOLE, f"multipart/form-data; boundary={'b' * 300}"), 400, "malformed",
    ),
    "a text named .jpg": ({"files": {"file": ("cat.jpg", b"a cat")}}, 415, "unsupported_type"),
    "a web page": ({"content": b"<!DOCTYPE html>", "headers": JPEG}, 415, "unsupported_type"),
    "JSON": ({"json": {"file": "a cat"}}, 422, "invalid_parameter"),
    "a form": ({"data": {"file": "a cat"}}, 415, "unsupported_type"),
    "no content type": ({"content": b"a cat"}, 415, "unsupported_type"),
    "half a PNG": ({"files": parts(encoded(Image.effect_noise((64, 64), 50))[:2000])},
                   422, "unreadable_image"),
    "no part named file": ({"files": {"photo": plain("red")}}, 422, "invalid_parameter"),
    "no image": ({"files": {"views": (None, b"ten")}}, 422, "missing_file"),
    "a file that was not chosen": ({"files": {"file": ("", b"")}}, 422, "missing_file"),
    **{f"{name}={value}": ({"params": {name: value}, "files": parts(plain("red"))},
                           422, "invalid_parameter")
       for name, value in (("views", "eleven"), ("top_k", 0), ("top_k", 1001), ("top_k", "all"))},
    "an image over the limit": ({"files": parts(plain("red", 1001, 1000))}, 413, "too_large"),
    "a decompression bomb": ({"files": parts(BOMB)}, 413, "too_large"),
    "a body over the limit": ({"content": b"x" * 100_001, "headers": JPEG}, 413, "too_large"),
    "a body over the limit, in chunks": ({"content": [b"x" * 50_001] * 2, "headers": JPEG},
                                         413, "too_large"),
    "too many images": ({"files": parts(*[plain("red")] * 4)}, 413, "too_large"),
    "too many parts": ({"files": [("file", ("", b""))] * 20}, 413, "too_large"),
    "a compressed body": ({"content": b"x", "headers": {**JPEG, "content-encoding": "gzip"}},
                          415, "unsupported_type"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "code"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_while_a_good_image_is_answered(
    sent: dict[str, Any], status: int, code: str, gate: Gate, client: TestClient
) -> None:
    with ThreadPoolExecutor() as threads, gate.shut():
        good = threads.submit(client.post, "/classify", files=parts(plain("lime")))
        assert gate.entered.wait(10)
        assert_problem(client.post("/classify", **sent), status, code)
        assert not good.done()
    assert top(good.result()) == "green"


def animated(*colours: str) -> bytes:
    first, *others = [Image.new("RGB", (8, 8), colour) for colour in colours]
    return encoded(first, "GIF", save_all=True, append_images=others)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ODD = {
    "a single pixel": plain("red", 1, 1),
    "a pixel wide": plain("red", 1, 20_000),
    "a pixel high": plain("red", 20_000, 1),
    "the first frame": animated("red", "blue"),
    "ink": encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", icc_profile=PROFILE),
    "as many pixels as there may be": plain("red", 1000, 1000),
}


@pytest.mark.parametrize("image", ODD.values(), ids=ODD)
@pytest.mark.parametrize("views", LOOKED_AT)
def test_odd_images_are_answered_beside_others(
    image: bytes, views: str, gate: Gate, client: TestClient
) -> None:
    with ThreadPoolExecutor() as threads, gate.shut():
        good = threads.submit(client.post, "/classify", files=parts(plain("lime")))
        assert gate.entered.wait(10)
        odd = threads.submit(client.post, "/classify", params={"views": views}, files=parts(image))
    assert top(good.result()) == "green"
    assert top(odd.result()) == "red"


def test_the_schema_tells_how_many_images_there_may_be(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/classify"]["post"]["requestBody"]
    form = described["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["minItems"] == 1
    assert form["properties"]["file"]["maxItems"] == SETTINGS.max_images_per_request == 3


# The service's own troubles.


def test_while_the_model_loads_requests_are_refused() -> None:
    loaded = threading.Event()

    def load(*_: object) -> Backend:
        assert loaded.wait(20)
        return fake_backend()

    with TestClient(create_app(SETTINGS, load=load)) as client:
        try:
            for response in (
                client.post("/classify", files=parts(plain("red"))),
                client.get("/models"),
            ):
                problem = assert_problem(response, 503, "not_ready")
                assert problem["detail"] == "the model is being loaded, warmed and timed"
                assert problem["retry_after_ms"] == 5000
                assert response.headers["retry-after"] == "5"
        finally:
            loaded.set()
        wait_ready(client)
        assert top(client.post("/classify", files=parts(plain("red")))) == "red"


def test_more_work_than_can_be_done_in_time_is_refused_with_the_time_to_wait() -> None:
    gate = Gate()
    patient = Settings(model="fake", views="ten", timeout_seconds=8)
    slow = fake_backend(gate, seconds_per_row=0.5, sizes=[1])
    with service(lambda *_: slow, patient) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            accepted = threads.submit(client.post, "/classify", files=parts(plain("lime")))
            assert gate.entered.wait(10)
            refused = client.post("/classify", files=parts(plain("red")))
        assert top(accepted.result()) == "green"
        assert top(client.post("/classify", files=parts(plain("red")))) == "red"
    problem = assert_problem(refused, 503, "overloaded")
    assert 1000 <= problem["retry_after_ms"] <= 4000  # ten seconds of work, and eight to do it
    seconds = int(refused.headers["retry-after"])
    assert problem["retry_after_ms"] <= 1000 * seconds < problem["retry_after_ms"] + 1000


def test_more_work_than_could_ever_be_done_in_time_is_a_504() -> None:
    with service(lambda *_: fake_backend(seconds_per_row=2)) as client:
        response = client.post("/classify", files=parts(plain("red")))
    problem = assert_problem(response, 504, "deadline_exceeded")
    assert "retry_after_ms" not in problem
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("milliseconds", "views"), [(10_000, "paper"), (2000, "ten"), (300, "single")]
)
def test_auto_takes_as_many_views_as_there_is_ample_time_for(milliseconds: int, views: str) -> None:
    """A row is said to take 10 ms."""
    with service(lambda *_: fake_backend(seconds_per_row=0.01)) as client:
        deadline = {"X-Timeout-Ms": str(milliseconds)}
        answer = client.post("/classify?views=auto", files=parts(plain("red")), headers=deadline)
        assert answer.json()["views"] == views


def gauge(client: TestClient, name: str) -> float:
    line = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert line is not None
    return float(line[1])


def test_auto_takes_fewer_views_as_the_load_grows() -> None:
    gate = Gate()
    settings = Settings(model="fake", timeout_seconds=60)
    with (
        service(lambda *_: fake_backend(gate, seconds_per_row=0.06), settings) as client,
        ThreadPoolExecutor(30) as threads,
    ):
        with gate.shut():
            others = [
                threads.submit(client.post, "/classify?views=ten", files=parts(plain("red")))
                for _ in range(15)
            ]
            while gauge(client, "googlenet_queue_rows") < 100:
                time.sleep(0.01)
            auto = threads.submit(client.post, "/classify?views=auto", files=parts(plain("red")))
            while gauge(client, "googlenet_requests_in_flight") < 17:
                time.sleep(0.01)  # fifteen with ten views, this one, and the scrape
        assert auto.result().json()["views"] == "ten"
        assert {other.result().status_code for other in others} == {200}


def test_every_error_a_request_can_meet_has_a_status() -> None:
    of_clients = {400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 499}
    assert of_clients | {500, 501, 503, 504, 507} == statuses.HTTP
