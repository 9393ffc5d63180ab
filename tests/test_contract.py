"""The service keeps to its own OpenAPI, and its OpenAPI says what can happen."""

import io
import re
from typing import Any

import pytest
import schemathesis
from conftest import fake_backend
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.types import Receive, Scope, Send

from service import images
from service.api.problems import CLIENT_CLOSED_REQUEST, STATUS
from service.app import create_app
from service.settings import Settings

SETTINGS = Settings(model="fake", max_body_bytes=1_000_000)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


# What no generator of strings would find: bodies that are what their schema says they are.
PICTURES = {kind: picture(kind.removeprefix("image/")) for kind in images.MEDIA_TYPES}
schemathesis.openapi.format("binary", st.sampled_from([*PICTURES.values()]))
for kind, data in PICTURES.items():
    schemathesis.openapi.media_type(kind, st.just(data))


class Renewed:
    """The service, new with each lifespan: schemathesis begins and ends one with each test."""

    def __init__(self) -> None:
        self._app = service()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the present service does."""
        if scope["type"] == "lifespan":
            self._app = service()
        await self._app(scope, receive, send)


def service() -> FastAPI:
    return create_app(SETTINGS, load=lambda _: fake_backend())


# Too many pictures are too much, 413, where schemathesis would have any other client error.
REFUSALS = [400, 405, 406, 413, 415, 422]
config = schemathesis.Config.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}}
)

# `parametrize` makes a test of each operation while tests are collected: it needs them by then.
schema = schemathesis.openapi.from_asgi("/openapi.json", Renewed(), config=config)


@pytest.fixture
def _ready() -> None:
    while schema["/readyz"]["GET"].Case().call().status_code != 200:
        pass  # as a probe does


@schema.parametrize()
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@pytest.mark.usefixtures("_ready")
def test_every_answer_is_as_documented(case: schemathesis.Case) -> None:
    # A deadline of milliseconds ends in the 504 that is documented for it; as every 5xx is a
    # failure to schemathesis, such a request gets a second here.
    deadline = str(case.headers.get("x-timeout-ms", ""))
    if re.fullmatch("0*[1-9][0-9]{0,2}", deadline):
        case.headers["x-timeout-ms"] = "1000"
    case.call_and_validate()


def operation(path: str) -> dict[str, Any]:
    described: dict[str, Any] = service().openapi()["paths"][path]
    return described


def test_every_status_that_classify_may_answer_with_is_documented() -> None:
    documented = {int(status) for status in operation("/classify")["post"]["responses"]}
    assert documented == {200, *STATUS.values()} - {CLIENT_CLOSED_REQUEST}  # nobody reads a 499


@pytest.mark.parametrize("status", sorted({*STATUS.values()} - {CLIENT_CLOSED_REQUEST}))
def test_every_error_of_classify_is_documented_as_a_problem(status: int) -> None:
    content = operation("/classify")["post"]["responses"][str(status)]["content"]
    assert content == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }


def test_every_operation_is_summed_up_and_described() -> None:
    for path, methods in service().openapi()["paths"].items():
        for method, described in methods.items():
            assert described["summary"], (method, path)
            assert described["description"], (method, path)
            for parameter in described.get("parameters", []):
                assert parameter["description"], (path, parameter["name"])


@pytest.mark.parametrize("name", ["Prediction", "Problem"])
def test_every_field_of_an_answer_has_an_example(name: str) -> None:
    properties = service().openapi()["components"]["schemas"][name]["properties"]
    optional = {"retry_after_ms"}
    described = {"instance"}  # a random name, which its description explains
    without = {field for field, schema in properties.items() if "examples" not in schema}
    assert without <= optional | described


def test_the_body_of_classify_is_documented_in_every_form() -> None:
    body = operation("/classify")["post"]["requestBody"]
    assert body["required"] is True
    assert {*body["content"]} == {
        *("multipart/form-data", "application/octet-stream", *images.MEDIA_TYPES)
    }
    assert body["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
