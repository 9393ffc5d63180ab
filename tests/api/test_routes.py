"""Every path with every method: responses, refusals and hints."""

import re
from collections.abc import Iterator

import pytest
from conftest import fake_backend
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from test_auth import GUARDED, KEY, named
from test_classify import assert_problem, service
from test_metrics import value

from service.api import not_found_hints
from service.api.routes import docs, page
from service.server.app import create_app
from service.settings import Settings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service on a fake model."""
    with service(lambda *_: fake_backend()) as client:
        yield client


def application() -> FastAPI:
    return create_app(Settings(model="fake"), load=lambda *_: fake_backend())


def templates() -> dict[str, set[str]]:
    """Give the methods of each path that the application has a route for."""
    app = application()
    methods: dict[str, set[str]] = {}
    for included in app.router.routes:
        for route in getattr(included, "original_router", app.router).routes:
            if isinstance(route, APIRoute):
                methods.setdefault(route.path, set()).update(route.methods)
    return methods


TEMPLATES = templates()
FILLED = {"{name}": "fake", "{version}": "1"}


def filled(template: str) -> str:
    for name, text in FILLED.items():
        template = template.replace(name, text)
    return template


def test_every_path_is_in_the_openapi_document_or_a_page() -> None:
    documented = application().openapi()["paths"]
    assert documented.keys() | page.PATHS | docs.PATHS == TEMPLATES.keys()


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_a_path_has_not_is_refused_with_those_it_has(
    method: str, template: str, client: TestClient
) -> None:
    has = TEMPLATES[template] | ({"HEAD"} if "GET" in TEMPLATES[template] else set())
    answer = client.request(method, filled(template))
    if method in has:
        assert answer.status_code not in {405, 500, 501}
        return
    assert answer.status_code == 405
    assert answer.headers["allow"] == ", ".join(sorted(has))
    if method != "HEAD":
        detail = answer.json().get("detail") or answer.json()["error"]
        assert detail.startswith(
            f"{method if method in not_found_hints.METHODS else 'this method'} is not"
        )
        assert {*re.findall("[A-Z]{3,}", detail.partition("use ")[2])} >= has


@pytest.mark.parametrize("template", sorted(t for t, has in TEMPLATES.items() if "GET" in has))
def test_head_is_answered_as_get_is_without_its_body(template: str, client: TestClient) -> None:
    path = filled(template)
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    own = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}
    for name in got.headers.keys() - own:
        assert head.headers[name] == got.headers[name]
    if path != "/metrics":  # which counts the first of the two
        assert int(head.headers["content-length"]) == len(got.content)


def test_head_is_counted_as_head_by_its_route(client: TestClient) -> None:
    series = ("googlenet_requests_total", "200", "HEAD", "interactive", "/livez")
    client.head("/livez")
    before = value(client, *series)
    client.head("/livez")
    assert value(client, *series) == before + 1


def test_head_needs_the_key_that_get_needs() -> None:
    with service(lambda *_: fake_backend(), GUARDED) as client:
        assert client.head("/models").status_code == 401
        assert client.head("/models", headers=named(KEY)).status_code == 200
        assert client.head("/livez").status_code == 200


def test_an_error_of_the_framework_keeps_its_sentence() -> None:
    app = application()

    @app.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418, "short and stout")

    with TestClient(app) as client:
        problem = assert_problem(client.get("/teapot"), 418, "im_a_teapot")
    assert problem["detail"] == "short and stout"


# What to do instead.


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/nothing/here", "POST an image to /classify"),
        ("/v1/models/x:predict", "or serve with --adapters kserve-v1"),
        ("/v1/models", "/v2/models/NAME/infer"),
        ("/predictions/resnet", "or serve with --adapters torchserve"),
        ("/invocations", "POST an image to /classify"),
        ("/healthz", "/livez, /readyz and /startupz"),
        ("/classfy", "did you mean /classify?"),
        ("/Explain", "did you mean /explain?"),
        ("/model", "did you mean /models?"),
        ("/vision/classify", "a proxy adds a prefix before /classify"),
        ("/" + "x" * 5000, "POST an image to /classify"),
        ("/v2/nothing", "/docs shows every path"),
    ],
)
def test_an_unknown_path_gets_a_hint_to_the_right_one(
    path: str, sentence: str, client: TestClient
) -> None:
    answer = client.post(path)
    assert answer.status_code == 404
    detail = answer.json().get("detail") or answer.json()["error"]
    assert detail.startswith("there is nothing at this path; ")
    assert sentence in detail
    if not path.startswith("/v2"):
        assert_problem(answer, 404, "not_found")


def test_put_of_curl_gets_a_hint_to_post(client: TestClient) -> None:
    for path in ("/classify", "/explain", "/embed"):
        problem = assert_problem(client.put(path, content=b"x"), 405, "method_not_allowed")
        assert problem["detail"].endswith("(curl -T sends PUT: use -F file=@IMAGE instead)")
    assert "curl" not in client.put("/livez").json()["detail"]
