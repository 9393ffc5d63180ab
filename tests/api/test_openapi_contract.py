"""The service keeps to its own OpenAPI, and its OpenAPI says what can happen.

Once for a service that anybody may call, and once for one with API keys. All of schemathesis'
checks run, none is left out.
"""

import base64
import hashlib
import io
import re
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from conftest import FakeBackend, colour_or_map, fake_backend
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.schemas import BaseSchema
from starlette.types import Receive, Scope, Send
from test_answer_stream import packed
from test_label_options import LABELS

from service.api import archive_body
from service.api.adapters.routers import ROUTERS
from service.api.auth import api_keys
from service.api.middleware.auth import OPEN
from service.api.statuses import CLIENT_CLOSED_REQUEST, HTTP
from service.imaging import image_decoder
from service.server.app import create_app
from service.settings import Settings

SETTINGS = Settings(model="fake", max_body_bytes=1_000_000)
ADAPTED = SETTINGS.model_copy(update={"adapters": ",".join(ROUTERS)})
KEY = api_keys.new()
GUARDED = SETTINGS.model_copy(
    update={"api_key_hashes": f"web:{hashlib.sha256(KEY.encode()).hexdigest()}"}
)


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


# What no generator of strings would find: bodies that are what their schema says they are.
IMAGES = {kind: image(kind.removeprefix("image/")) for kind in image_decoder.MEDIA_TYPES}
schemathesis.openapi.format("binary", st.sampled_from([*IMAGES.values()]))
BASE64 = [base64.b64encode(data).decode() for data in IMAGES.values()]
schemathesis.openapi.format("byte", st.sampled_from(BASE64))
ARCHIVES = {kind: packed({"red.png": image("PNG")}, kind) for kind in archive_body.KINDS}
for kind, data in (IMAGES | ARCHIVES).items():
    schemathesis.openapi.media_type(kind, st.just(data))


class Renewed:
    """The service, new with each lifespan: schemathesis begins and ends one with each test."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = service(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the present service does."""
        if scope["type"] == "lifespan":
            self._app = service(self._settings)
        await self._app(scope, receive, send)


def labelled(*_: object) -> FakeBackend:
    """Make a fake model whose labels have broader ones, so that every option has a meaning."""
    backend = fake_backend(colour_or_map, explains=True)
    backend.ensemble = replace(backend.ensemble, labels=LABELS)
    return backend


def service(settings: Settings = SETTINGS) -> FastAPI:
    return create_app(settings, load=labelled)


# Too many images are too much, 413, who has no key is told so before anything else, 401, or who
# has none for this, 403, and what is no name may be one that is unknown, 404: where schemathesis
# would have any other client error.
REFUSALS = [400, 401, 403, 404, 405, 406, 413, 415, 422]


def described(chosen: Settings, **generation: bool) -> BaseSchema:
    """Give what the service says of itself, to generate requests of it."""
    chosen_checks = {"negative_data_rejection": {"expected-statuses": REFUSALS}}
    config = schemathesis.Config.from_dict({"checks": chosen_checks, "generation": generation})
    return schemathesis.openapi.from_asgi("/openapi.json", Renewed(chosen), config=config)


# `parametrize` makes a test of each operation while tests are collected: it needs them by then.
schema = described(SETTINGS)
guarded = described(GUARDED).exclude(path=[*OPEN])
keyed = described(GUARDED, **{"with-security-parameters": False}).exclude(path=[*OPEN])
adapted = described(ADAPTED).include(tag_regex=".")
often = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck]
)


@pytest.fixture
def _ready() -> None:
    for described_ in (schema, guarded, keyed, adapted):
        while described_["/readyz"]["GET"].Case().call().status_code != 200:
            pass  # as a probe does


@pytest.mark.slow
@schema.parametrize()
@often
@pytest.mark.usefixtures("_ready")
def test_every_answer_is_as_documented(case: schemathesis.Case) -> None:
    have_time(case)
    case.call_and_validate()


@pytest.mark.slow
@adapted.parametrize()
@often
@pytest.mark.usefixtures("_ready")
def test_every_answer_of_an_adapter_is_as_documented(case: schemathesis.Case) -> None:
    have_time(case)
    case.call_and_validate()


@pytest.mark.slow
@keyed.parametrize()
@often
@pytest.mark.usefixtures("_ready")
def test_every_answer_to_a_key_is_as_documented(case: schemathesis.Case) -> None:
    """The test brings it; asked again without it or with a wrong one, the service has to refuse."""
    have_time(case)
    case.call_and_validate(headers={"X-API-Key": KEY})


@pytest.mark.slow
@guarded.parametrize()
@often
@pytest.mark.usefixtures("_ready")
def test_every_response_to_an_unknown_key_is_as_documented(case: schemathesis.Case) -> None:
    have_time(case)
    assert case.call_and_validate().status_code == 401


def have_time(case: schemathesis.Case) -> None:
    # A deadline of milliseconds ends in the 504 that is documented for it; as every 5xx is a
    # failure to schemathesis, such a request gets a second here.
    deadline = str(case.headers.get("x-timeout-ms", ""))
    if re.fullmatch("0*[1-9][0-9]{0,2}", deadline):
        case.headers["x-timeout-ms"] = "1000"


def operation(path: str, settings: Settings = SETTINGS) -> dict[str, Any]:
    described: dict[str, Any] = service(settings).openapi()["paths"][path]
    return described


# No client reads a 499, a 431 is the connection's, before there is a request, and some errors are
# those of managing models or of explaining.
ERRORS = HTTP - {CLIENT_CLOSED_REQUEST, 431} - {403, 501, 507}
REFUSED = {401, 429}  # where there are keys


def test_every_status_of_classify_is_documented_and_every_error_as_a_problem() -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for chosen, errors in ((SETTINGS, ERRORS - REFUSED), (GUARDED, ERRORS)):
        documented = operation("/classify", chosen)["post"]["responses"]
        assert {int(status) for status in documented} == {200, *errors}
        assert all(documented[str(status)]["content"] == problem for status in errors)


def test_every_operation_parameter_and_field_is_described() -> None:
    document = service().openapi()
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            assert described["summary"], (method, path)
            assert described["description"], (method, path)
            for parameter in described.get("parameters", []):
                assert parameter["description"], (path, parameter["name"])
    for name in ("Prediction", "Problem"):
        properties = document["components"]["schemas"][name]["properties"]
        without = {field for field, schema in properties.items() if "examples" not in schema}
        assert without <= {"retry_after_ms", "instance"}  # optional, and a random name


def test_the_body_of_classify_is_documented_in_every_form() -> None:
    body = operation("/classify")["post"]["requestBody"]
    assert body["required"] is True
    assert {*body["content"]} == {
        *("multipart/form-data", "application/octet-stream", "application/json"),
        *(*image_decoder.MEDIA_TYPES, *ARCHIVES),
    }
    assert body["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
    assert body["content"]["application/json"]["schema"]["required"] == ["images"]
    assert "null" not in str(body)


def test_api_keys_are_documented_only_where_they_are_needed() -> None:
    open_to_all, keyed = service().openapi(), service(GUARDED).openapi()
    assert "securitySchemes" not in open_to_all["components"]
    schemes = keyed["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("name", scheme.get("scheme"))) for scheme in
            schemes.values()} == {("http", "bearer"), ("apiKey", "X-API-Key")}  # fmt: skip
    for path, methods in keyed["paths"].items():
        for method, described in methods.items():
            is_guarded = path not in OPEN
            assert ("security" in described) is is_guarded, (method, path)
            assert ({"401", "429"} <= described["responses"].keys()) is is_guarded
            if is_guarded:
                assert described["security"] == [
                    {scheme: []} for scheme in schemes
                ]  # either will do
                assert {"Retry-After", "RateLimit", "RateLimit-Policy"} == {
                    *described["responses"]["429"]["headers"]
                }
                assert {*described["responses"]["401"]["headers"]} == {"WWW-Authenticate"}
            assert "security" not in open_to_all["paths"][path][method]


def test_the_document_is_made_once() -> None:
    app = service(GUARDED)
    assert app.openapi() is app.openapi()
