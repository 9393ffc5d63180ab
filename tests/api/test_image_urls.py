"""POST /classify, /explain and /embed with images by URL, where the service fetches those."""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from conftest import colour_or_map, fake_backend, wait_ready, website
from starlette.testclient import TestClient
from starlette.types import Message
from test_answer_stream import LINES, lines
from test_api_processes import CLIENT, scraped, served_by, url
from test_classify import SETTINGS, assert_describes, assert_problem, plain, service, top
from test_connections import hosting
from test_json_body import PHOTOS, assert_same, encoded, send
from test_metrics import nonzero
from test_uploads import asgi

from service.client import AsyncClient, Client, Rejected
from service.models.store import Store
from service.server.app import create_app
from service.settings import Settings

RED, BLUE = plain("red"), plain("blue")
PAGE = b"<!DOCTYPE html><html><body>Hello</body></html>"


@pytest.fixture(scope="module")
def files(shared: Path) -> dict[str, bytes]:
    """What is at the paths of `web`."""
    photos = {name: (shared / f"photos/flickr/{name}.jpg").read_bytes() for name in PHOTOS}
    return {**photos, "red": RED, "blue": BLUE, "page": PAGE, "empty": b"", "large": bytes(200_000)}


@pytest.fixture(scope="module")
def web(files: Mapping[str, bytes]) -> Iterator[str]:
    """A web server on this machine."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path[1:]
        if name == "moved":
            request.send_response(302)
            request.send_header("Location", "red")
        elif name in files:
            request.send_response(200)
        else:
            request.send_response(404)
        request.send_header("Content-Length", str(len(files.get(name, b""))))
        request.end_headers()
        request.wfile.write(files.get(name, b""))

    with website(answer) as base:
        yield base


def fetching(web: str, **others: Any) -> dict[str, Any]:
    """Give the settings with which images are fetched from there."""
    port = web.rpartition(":")[2]
    chosen = {"fetch_images": True, "fetch_images_networks": "127.0.0.0/8"}
    return {**chosen, "fetch_images_ports": port, **others}


def settings(web: str, **others: Any) -> Settings:
    return SETTINGS.model_copy(update=fetching(web, **others))


@pytest.fixture(scope="module")
def client(web: str) -> Iterator[TestClient]:
    """A client of a ready service on a fake model, which fetches images."""
    with service(lambda *_: fake_backend(colour_or_map, explains=True), settings(web)) as client:
        yield client


def test_photos_by_url_are_answered_as_uploads_are(
    real_store: Store, web: str, files: Mapping[str, bytes]
) -> None:
    small = Settings(
        model="bvlc_googlenet", model_store=real_store.root, device="cpu", precision="float32",
        max_batch=4, cpu_threads=1, **fetching(web),
    )  # fmt: skip
    with TestClient(create_app(small)) as client:
        wait_ready(client)
        path, names = "/classify?views=single", PHOTOS[:3]
        uploaded = [client.post(path, files={"file": files[name]}).json() for name in names]
        images = [f"{web}/{name}" for name in names]
        answer = send(client, {"images": [*images, encoded(files["beagle"])]}, path).json()
        alone = send(client, {"url": images[0]}, path).json()
    for result, wanted in zip(answer["results"], [*uploaded, uploaded[2]], strict=True):
        assert_same(result, wanted)
    assert_same(alone, uploaded[0])
    assert alone["predictions"][0]["label"] == "tractor"


def test_every_route_with_images_takes_urls(client: TestClient, web: str) -> None:
    for body in ({"url": f"{web}/red"}, {"images": [f"{web}/moved"]}):
        assert top(send(client, {**body, "top_k": 1, "views": "single"})) == "red"
        assert send(client, body, "/explain").json()["label"] == "red"
        assert send(client, body, "/embed").json()["features"][0] > 200
    assert top(send(client, {"url": f"{web.upper()}/blue"})) == "blue"


def test_an_image_that_cannot_be_fetched_fails_alone(client: TestClient, web: str) -> None:
    body = {"images": [f"{web}/red", f"{web}/nothing", encoded(BLUE)]}
    red, missing, blue = send(client, body).json()["results"]
    assert [it["predictions"][0]["label"] for it in (red, blue)] == ["red", "blue"]
    assert_describes(missing["error"], 422, "fetch_failed")
    codes = {
        it["index"]: it.get("error", {}).get("code") for it in lines(send(client, body, **LINES))
    }
    assert codes == {0: None, 1: "fetch_failed", 2: None}


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("page", 415, "unsupported_type"),
        ("empty", 400, "malformed"),
        ("large", 413, "too_large"),
        ("nothing", 422, "fetch_failed"),
        ("a b", 422, "fetch_refused"),
    ],
)
def test_what_is_no_image_is_answered_as_an_upload_is(
    name: str, status: int, code: str, client: TestClient, web: str
) -> None:
    for path in ("/classify", "/explain", "/embed"):
        assert_problem(send(client, {"url": f"{web}/{name}"}, path), status, code)


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        ({"url": "ftp://a.org/"}, "fetch_refused", "the URL has to begin with https:// or http://"),
        ({"url": encoded(RED)}, "fetch_refused", "the URL has to begin with https:// or http://"),
        ({"images": ["http:a"]}, "fetch_refused", "the URL has to begin with https:// or http://"),
        ({"images": ["file:///a"]}, "invalid_parameter", "images[0] is a URL; send the image"),
        ({"url": "http://a.org/"}, "fetch_refused", "images are not fetched from this port"),
        ({"url": ""}, "invalid_parameter", "url: "),
        ({"url": None}, "invalid_parameter", "url: "),
        ({"url": ["http://a.org/"]}, "invalid_parameter", "url: "),
        ({"url": "http://a.org/", "images": ["a"]}, "invalid_parameter", "images: send either"),
    ],
)
def test_what_is_no_url_is_refused(
    body: dict[str, Any], code: str, sentence: str, client: TestClient
) -> None:
    problem = assert_problem(send(client, body), 422, code)
    assert problem["detail"].startswith(sentence)


def test_hosts_are_those_of_the_settings(web: str) -> None:
    with service(lambda *_: fake_backend(), settings(web, fetch_images_from="a.org")) as client:
        problem = assert_problem(send(client, {"url": f"{web}/red"}), 422, "fetch_refused")
    assert problem["detail"] == "images are not fetched from this host"


def test_fetched_images_share_the_limits_of_uploads(
    client: TestClient, web: str, files: Mapping[str, bytes]
) -> None:
    many = {"images": [f"{web}/red"] * 4}
    assert_problem(send(client, many), 413, "too_large")
    half = {"images": [f"{web}/koala"] * 2}
    size = len(files["koala"])
    with service(lambda *_: fake_backend(), settings(web, max_body_bytes=size + 1000)) as small:
        results = send(small, half).json()["results"]
        assert sorted("error" in it for it in results) == [False, True]
    few = settings(web, max_body_bytes=10**6, max_inflight_body_bytes=2 * size)
    with service(lambda *_: fake_backend(), few) as small:
        assert_problem(send(small, {"url": f"{web}/koala"}), 413, "too_large")
        assert top(send(small, {"url": f"{web}/red"})) == "red"


def test_fetching_is_a_part_of_the_requests_time() -> None:
    over = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        over.wait(20)

    with website(hang) as web:
        try:
            with service(lambda *_: fake_backend(), settings(web)) as client:
                late = send(client, {"url": web}, **{"x-timeout-ms": "300"})
                assert_problem(late, 504, "deadline_exceeded")
                assert nonzero(client, "googlenet_fetches_total") == {("cancelled",): 1}
            own = settings(web, fetch_timeout_seconds=0.3)
            with service(lambda *_: fake_backend(), own) as client:
                assert_problem(send(client, {"url": web}), 422, "fetch_failed")
                assert nonzero(client, "googlenet_fetches_total") == {("timeout",): 1}
        finally:
            over.set()


async def test_the_python_client_sends_urls(web: str) -> None:
    with hosting(fake_backend(), **fetching(web)) as hosted:
        base = f"http://127.0.0.1:{hosted.port}"
        async with AsyncClient(base) as client:
            ranking = await client.classify_url(f"{web}/red", views="single")
        with Client(base) as blocking, pytest.raises(Rejected) as error:
            blocking.classify_url(f"{web}/nothing", background=True)
    assert ranking.best.label == "red"
    assert error.value.code == "fetch_failed"


def test_a_client_that_disconnects_cancels_its_fetches() -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(20)

    async def hanging_up() -> AsyncIterator[Message]:
        yield {"type": "http.request", "body": json.dumps({"url": web}).encode()}
        await asyncio.to_thread(asked.wait, 10)
        yield {"type": "http.disconnect"}

    with website(hang) as web, service(lambda *_: fake_backend(), settings(web)) as client:
        asgi(client, hanging_up().__anext__, {"content-type": "application/json"})
        over.set()
        assert nonzero(client, "googlenet_fetches_total") == {("cancelled",): 1}
        assert nonzero(client, "googlenet_rejected_total") == {("interactive", "caller_gone"): 1}


# Where it is off, and on APIs that have no URLs.


class Sockets:
    """Counts lookups and connections of this process, while it is watched."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_watching = False
        sys.addaudithook(self._note)

    def _note(self, event: str, _: tuple[Any, ...]) -> None:
        if self.is_watching and event in {"socket.getaddrinfo", "socket.connect"}:
            self.seen.append(event)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Give what is seen until the context is left."""
        self.seen.clear()
        self.is_watching = True
        yield self.seen
        self.is_watching = False


@pytest.fixture(scope="module")
def sockets() -> Sockets:
    """The one hook of this module: they cannot be removed."""
    return Sockets()


def test_nothing_is_looked_up_or_connected_to_where_it_is_off(
    client: TestClient, web: str, sockets: Sockets
) -> None:
    urls = [f"{web}/red", "http://example.org/a.jpg", "https://[::1]/"]
    with service(lambda *_: fake_backend(colour_or_map, explains=True)) as off:
        with sockets.watched() as seen:
            for path in ("/classify", "/explain", "/embed"):
                problem = assert_problem(send(off, {"url": urls[0]}, path), 422, "fetch_disabled")
            results = send(off, {"images": [encoded(RED), *urls[1:]]}).json()["results"]
        assert seen == []
        assert "fetch" not in str(
            off.get("/openapi.json").json()["paths"]["/classify"]["post"]["requestBody"]
        )
    assert problem["detail"] == (
        "this service does not fetch images by URL; send the image itself, or see --fetch-images"
    )
    assert [it.get("error", {}).get("code") for it in results] == [None] + ["fetch_disabled"] * 2
    with sockets.watched() as seen:  # where it is on the hook sees both
        assert top(send(client, {"url": urls[0]})) == "red"
    assert seen == ["socket.getaddrinfo", "socket.connect"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/fake", {"inputs": "URL"}),
        ("/v1/models/fake:predict", {"instances": [{"b64": "URL"}]}),
        ("/predictions/fake", {"images": ["URL"]}),
        ("/predictions/fake", {"url": "URL"}),
        ("/v2/models/fake/infer",
         {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["URL"]}]}),
    ],
)  # fmt: skip
def test_other_apis_take_no_urls(
    path: str, body: dict[str, Any], web: str, sockets: Sockets
) -> None:
    text = json.dumps(body).replace("URL", f"{web}/red").encode()
    adapted = settings(web, adapters="huggingface,torchserve,kserve-v1")
    with service(lambda *_: fake_backend(), adapted) as client, sockets.watched() as seen:
        answer = client.post(path, content=text, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert "is a URL; send the image itself, in base64" in answer.text
    assert seen == []


def test_urls_are_documented_where_they_are_fetched(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/classify", "/explain", "/embed"):
        content = paths[path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        assert schema["oneOf"] == [{"required": ["images"]}, {"required": ["url"]}]
        assert "required" not in schema
        items = schema["properties"]["images"]["items"]["anyOf"]
        assert [it["format"] for it in (*items, schema["properties"]["url"])] == [
            "byte",
            "uri",
            "uri",
        ]
        assert "url" not in content["multipart/form-data"]["schema"]["properties"]


# In several processes.


@pytest.mark.slow
def test_every_process_fetches(web: str) -> None:
    chosen = [f"--{name.replace('_', '-')}={value}" for name, value in fetching(web).items()]
    with served_by(2, "--model", "digits", *chosen) as ours:
        for _ in range(20):
            answer = CLIENT.post(f"{url(ours)}/classify", json={"images": [f"{web}/red", web]})
            red, missing = answer.json()["results"]
            assert red["predictions"]
            assert missing["error"]["code"] == "fetch_failed"
        values = scraped(ours)
    counted = {
        outcome: values[f'googlenet_fetches_total{{outcome="{outcome}"}}']
        for outcome in ("ok", "failed", "refused")
    }
    assert counted == {"ok": 20, "failed": 20, "refused": 0}
