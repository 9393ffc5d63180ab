"""Early admission: the same refusals as the classifier's, counted, before the body is read."""

import threading
from collections.abc import Iterator

import pytest
from conftest import FakeBackend, answered, fake_backend, wait_ready
from starlette.testclient import TestClient

from service.server.app import create_app
from service.settings import Settings

BODY = {"content": b"no image", "headers": {"content-type": "image/png"}}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A service whose rows cost 10 ms, so that 144 of them take more than a second."""
    settings = Settings(views="single", timeout_seconds=20)
    app = create_app(settings, load=lambda *_: fake_backend(seconds_per_row=0.01))
    with TestClient(app) as made:
        wait_ready(made)
        yield made


def status(client: TestClient, query: str, milliseconds: str | None = None) -> int:
    headers: dict[str, str | bytes] = {"content-type": "image/png"}
    if milliseconds is not None:
        headers["x-timeout-ms"] = milliseconds.encode("latin-1")
    return client.post(f"/classify{query}", content=b"no image", headers=headers).status_code


@pytest.mark.parametrize(
    ("query", "milliseconds", "expected"),
    [
        ("", None, 415),  # let in: what is wrong is the image
        ("?views=paper", None, 415),
        ("?views=paper", "500", 504),
        ("?views=paper&views=single", "500", 422),  # the last counts, and the route refuses both
        ("", "500", 415),
        ("", "5", 504),
    ],
)
def test_a_request_that_cannot_meet_its_timeout_is_refused(
    client: TestClient, query: str, milliseconds: str | None, expected: int
) -> None:
    assert status(client, query, milliseconds) == expected


def test_a_refusal_comes_before_the_route_looks_at_anything(client: TestClient) -> None:
    assert status(client, "?views=paper&top_k=0", "20000") == 422
    assert status(client, "?views=paper&top_k=0", "500") == 504


@pytest.mark.parametrize(
    ("query", "milliseconds"),
    [
        ("?views=all", "5"),
        ("", "0"),
        ("", "-5"),
        ("", "soon"),
        ("", ""),
        ("", "\xb2"),
        ("", "9" * 5000),
        ("?views=%ff", "5"),
    ],
)
def test_what_is_no_views_or_no_time_is_the_routes_to_explain(
    client: TestClient, query: str, milliseconds: str
) -> None:
    assert status(client, query, milliseconds) == 422


def test_a_timeout_is_at_most_the_services() -> None:
    settings = Settings(views="paper", timeout_seconds=0.5)
    app = create_app(settings, load=lambda *_: fake_backend(seconds_per_row=0.01))
    with TestClient(app) as impatient:
        wait_ready(impatient)
        assert status(impatient, "", "20000") == 504
        assert status(impatient, "?views=single", "20000") == 415


def test_a_refusal_is_counted_under_its_route_and_reason() -> None:
    loading = threading.Event()

    def load(*_: object) -> FakeBackend:
        loading.wait()
        return fake_backend()

    with TestClient(create_app(Settings(), load=load)) as client:
        answer = client.post("/classify", **BODY)
        metrics = client.get("/metrics").text
        loading.set()
    assert answer.status_code == 503
    assert answer.json()["code"] == "not_ready"
    assert answer.json()["instance"].endswith(answer.headers["x-request-id"])
    assert answer.headers["retry-after"] == "5"
    assert f"{answered(503)} 1.0" in metrics
    assert 'googlenet_rejected_total{priority="interactive",reason="not_ready"} 1.0' in metrics


def test_only_images_that_come_in_are_looked_at(client: TestClient) -> None:
    assert client.get("/classify", headers={"x-timeout-ms": "1"}).status_code == 405
    assert client.post("/models", headers={"x-timeout-ms": "1"}).status_code == 405
