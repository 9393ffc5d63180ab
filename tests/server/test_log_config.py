"""The log: a line a request, as JSON or for people, and nothing of what was sent."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import fake_backend
from starlette.testclient import TestClient
from test_classify import JPEG, parts, plain, service

from service.server import log_config
from service.settings import Settings


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a ready service on a fake model."""
    with service(lambda *_: fake_backend()) as client:
        yield client


FIELDS = {"id": "mine", "method": "GET", "route": "/models", "status": 200, "seconds": 0.5}


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Give the fields of what was logged of requests."""
    return [record.request for record in caplog.records if hasattr(record, "request")]


def test_a_request_is_a_line_with_its_stages(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = client.post(
            "/classify?views=single", files=[*parts(plain("red")), *parts(plain("blue"))],
            headers={"X-Request-ID": "mine"},
        )  # fmt: skip
    (line,) = told(caplog)
    assert [*line] == [
        *("id", "method", "route", "status", "seconds", "views", "images"),
        *("upload", "decode", "queue", "inference", "batch_rows"),
    ]
    assert line["id"] == "mine" == answer.headers["x-request-id"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/classify", 200)
    assert (line["views"], line["images"]) == ("single", 2)
    assert line["batch_rows"] in {1, 2}
    assert line["upload"] + line["decode"] + line["queue"] + line["inference"] > 0
    assert line["decode"] < line["seconds"]
    assert caplog.messages[-1] == "POST /classify 200"


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/classify", b"no image", (415, "unsupported_type")),
        ("/classify?top_k=0", b"", (422, "invalid_parameter")),
        ("/classify?top_k=1", b"", (400, "malformed")),
    ],
)
def test_a_refusal_is_logged_with_its_code(
    path: str,
    body: bytes,
    why: tuple[int, str],
    client: TestClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        client.post(path, content=body, headers=JPEG)
    (line,) = told(caplog)
    assert (line["status"], line["code"]) == why


def test_a_request_refused_by_middleware_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.post("/classify?views=paper", headers={"X-Timeout-Ms": "1"})
    (line,) = told(caplog)
    assert (line["route"], line["status"]) == ("/classify", 504)
    assert line["code"] == "deadline_exceeded"


def test_no_data_of_the_client_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    secret = [("file", ("secret.png", plain("red"), "image/png"))]
    with caplog.at_level(logging.DEBUG, logger="service"):
        client.post("/classify?top_k=3&secret=1", files=secret, headers={"X-Secret": "secret"})
        client.post("/secret")
    assert len(told(caplog)) == 2
    assert "secret" not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
def test_probes_are_logged_at_debug_level(
    path: str, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.get(path)
    assert told(caplog) == []
    with caplog.at_level(logging.DEBUG):
        client.get(path)
    assert [line["route"] for line in told(caplog)] == [path]


def log_one(capsys: pytest.CaptureFixture[str], **chosen: str) -> str:
    """Configure logging, log a request and a failure's traceback; give what comes of it."""
    root, logger = logging.getLogger(), logging.getLogger("service.test")
    before, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's
    try:
        log_config.configure(Settings(**chosen))  # type: ignore[arg-type]  # pydantic takes words
        logger.info("GET /models %d", 200, extra={"request": FIELDS})
        try:
            int("no number")
        except ValueError:
            logger.exception("it failed", extra={"color_message": "\x1b[1m"})
        return capsys.readouterr().err
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize("chosen", ["json", "auto"])
def test_json_logs_are_an_object_a_line(chosen: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in log_one(capsys, log_format=chosen).splitlines()]
    request, failure = lines
    assert request.pop("timestamp").endswith("+00:00")
    assert request == {
        "level": "INFO",
        "logger": "service.test",
        "message": "GET /models 200",
        "request": FIELDS,
    }
    assert failure["message"] == "it failed"
    assert "ValueError: invalid literal" in failure["exc_info"]
    assert "color_message" not in failure


def test_text_logs_have_fields_after_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *traceback = log_one(capsys, log_format="text").splitlines()
    assert first.endswith(" INFO:     GET /models 200  id=mine  seconds=0.5")
    assert second.endswith(" ERROR:    it failed")
    assert traceback[-1].startswith("ValueError: invalid literal")


def test_on_a_terminal_auto_is_text_in_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "\x1b[32mINFO\x1b[0m:     GET /models 200" in log_one(capsys, log_format="auto")


def test_lower_levels_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    (only,) = log_one(capsys, log_format="json", log_level="error").splitlines()
    assert json.loads(only)["level"] == "ERROR"
