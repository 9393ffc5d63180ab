"""POST /classify and /explain for JSON: base64 images, and parameters with their types."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import colour_or_map, fake_backend
from starlette.testclient import TestClient
from test_answer_stream import LINES, lines
from test_classify import SETTINGS, assert_describes, assert_problem, plain, service, top

from service.api import json_body

RED, BLUE = plain("red"), plain("blue")
PHOTOS = ("tractor", "koala", "beagle") * 2


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def send(client: TestClient, body: Any, path: str = "/classify", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json; charset=utf-8", **headers}
    return client.post(path, content=content, headers=sent)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of a ready service on a fake model, which takes three images."""
    with service(lambda *_: fake_backend(colour_or_map, explains=True)) as client:
        yield client


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert len(ours["predictions"]) == len(theirs["predictions"]) == 5
    for one, other in zip(ours["predictions"], theirs["predictions"], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert one["wnid"] == other["wnid"]


def test_json_is_answered_as_a_form_is(real_client: TestClient, shared: Path) -> None:
    photos = [(shared / f"photos/flickr/{name}.jpg").read_bytes() for name in PHOTOS]
    assert sum(map(len, photos)) > json_body.LARGE > 2 * len(photos[0])
    path = "/classify?views=single"
    form = real_client.post(path, files=[("file", photo) for photo in photos]).json()
    images = [f"data:image/jpeg;base64,{encoded(photo)}" for photo in photos]
    answer = send(real_client, {"images": images, "views": "single"}).json()
    for ours, theirs, name in zip(answer["results"], form["results"], PHOTOS, strict=True):
        assert_same(ours, theirs)
        assert ours["predictions"][0]["label"] == name
    alone = real_client.post(path, files={"file": photos[0]}).json()
    assert_same(send(real_client, {"images": [encoded(photos[0])]}, path).json(), alone)


def test_fields_of_json_override_the_query(client: TestClient) -> None:
    body = {"images": [encoded(BLUE)], "views": "ten", "top_k": 2, "labels": "red,blue"}
    body |= {"renormalise": True, "threshold": 0, "model": "fake"}
    answer = send(client, body, "/classify?views=single&top_k=1").json()
    assert (answer["views"], len(answer["predictions"])) == ("ten", 2)
    explained = send(client, {"images": [encoded(RED)], "label": "blue"}, "/explain").json()
    assert explained["label"] == "blue"


def test_an_image_that_is_no_base64_fails_alone(client: TestClient) -> None:
    body = {"images": [encoded(RED), "ftp://example.org/a.png", ""]}
    red, link, empty = send(client, body).json()["results"]
    assert red["predictions"][0]["label"] == "red"
    assert_describes(link["error"], 422, "invalid_parameter")
    assert link["error"]["detail"] == "images[1] is a URL; send the image itself, in base64"
    assert_describes(empty["error"], 400, "malformed")
    codes = [line.get("error", {}).get("code") for line in lines(send(client, body, **LINES))]
    assert codes == [None, "invalid_parameter", "malformed"]
    for path in ("/classify", "/explain"):
        assert_problem(send(client, {"images": ["***"]}, path), 422, "invalid_parameter")


GOOD = encoded(RED)
REFUSED: dict[str, tuple[Any, int, str, str]] = {
    "no JSON": (b"{", 400, "malformed", "the body: "),
    "nothing": (b"", 400, "malformed", "the body: "),
    "no object": ([GOOD], 422, "invalid_parameter", "the body: "),
    "no images": ({"views": "single"}, 422, "invalid_parameter", "images: "),
    "an empty list": ({"images": []}, 422, "invalid_parameter", "images: "),
    "no list": ({"images": GOOD}, 422, "invalid_parameter", "images: "),
    "a number": ({"images": [GOOD, 1]}, 422, "invalid_parameter", "images.1: "),
    "a misspelling": ({"images": [GOOD], "view": "ten"}, 422, "invalid_parameter",
                      "there is no field 'view'; did you mean views?"),
    "null": ({"images": [GOOD], "views": None}, 422, "invalid_parameter",
             "views is null; leave it out instead"),
    "a text": ({"images": [GOOD], "top_k": "1"}, 422, "invalid_parameter", "top_k: "),
    "a truth": ({"images": [GOOD], "top_k": True}, 422, "invalid_parameter", "top_k: "),
    "no plan": ({"images": [GOOD], "views": "eleven"}, 422, "invalid_parameter", "views: "),
    "too many images": ({"images": [GOOD] * 4}, 413, "too_large", "the request has over 3 images"),
    "too many values": ({"images": [0] * 10_001}, 413, "too_large", "over 10000 values"),
}  # fmt: skip


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_json_is_refused_as_a_whole(sent: tuple[Any, int, str, str], client: TestClient) -> None:
    body, status, code, sentence = sent
    problem = assert_problem(send(client, body), status, code)
    assert problem["detail"].startswith(sentence)


def test_bodies_are_bounded_with_the_images_in_them(client: TestClient) -> None:
    body = {"images": [encoded(bytes(40_000))]}
    assert_problem(send(client, {"images": ["A" * 100_000]}), 413, "too_large")
    few = SETTINGS.model_copy(update={"max_inflight_body_bytes": 150_000})
    with service(lambda *_: fake_backend(), few) as small:
        assert_problem(send(small, body), 413, "too_large")
        assert top(send(small, {"images": [GOOD]})) == "red"
