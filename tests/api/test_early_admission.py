"""Early admission: the same refusals as the classifier's, counted, before the body is read."""

import threading
from collections.abc import Iterator

import httpx2
import pytest
from conftest import FakeBackend, answered, fake_backend
from starlette.testclient import TestClient
from test_classify import assert_problem, service

from service.server.app import create_app
from service.settings import Settings

BODY = {"content": b"no image", "headers": {"content-type": "image/png"}}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A service whose rows cost 10 ms, so that 144 of them take more than a second."""
    settings = Settings(views="single", timeout_seconds=20)
    with service(lambda *_: fake_backend(seconds_per_row=0.01), settings) as made:
        yield made


def post(client: TestClient, query: str, milliseconds: str | None = None) -> httpx2.Response:
    headers: dict[str, str | bytes] = {"content-type": "image/png"}
    if milliseconds is not None:
        headers["x-timeout-ms"] = milliseconds.encode("latin-1")
    return client.post(f"/classify{query}", content=b"no image", headers=headers)


@pytest.mark.parametrize(
    ("query", "milliseconds", "status"),
    [
        ("", None, 415),  # admitted: only the image is wrong
        ("?views=paper", None, 415),
        ("?views=paper", "500", 504),
        ("?views=paper&views=single", "500", 422),  # the last counts, and the route refuses both
        ("?views=paper&top_k=0", "20000", 422),
        ("?views=paper&top_k=0", "500", 504),  # before the route validates anything
        ("", "500", 415),
        ("", "5", 504),
    ],
)
def test_a_request_that_cannot_meet_its_timeout_is_refused(
    client: TestClient, query: str, milliseconds: str | None, status: int
) -> None:
    assert post(client, query, milliseconds).status_code == status


@pytest.mark.parametrize(
    ("query", "milliseconds", "name"),
    [
        ("?views=all", "5", "views"),
        ("?views=%ff", "5", "views"),
        *(
            ("", text, "x-timeout-ms")
            for text in ("0", "-5", "soon", "1.5", "", "\xb2", "9" * 5000)
        ),
    ],
)
def test_invalid_views_and_timeouts_are_invalid_parameters(
    client: TestClient, query: str, milliseconds: str, name: str
) -> None:
    problem = assert_problem(post(client, query, milliseconds), 422, "invalid_parameter")
    assert problem["detail"].startswith(f"{name}: ")


def test_a_timeout_is_at_most_that_of_the_service() -> None:
    settings = Settings(views="paper", timeout_seconds=0.5)
    with service(lambda *_: fake_backend(seconds_per_row=0.01), settings) as impatient:
        for milliseconds in ("20000", "9" * 400):
            assert post(impatient, "", milliseconds).status_code == 504
            assert post(impatient, "?views=single", milliseconds).status_code == 415


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
