"""Errors as responses: RFC 9457 problems, or the Open Inference Protocol's body under /v2."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from service import errors
from service.api import not_found_hints, parameters
from service.api.middleware.request_log import is_background, note, path, request_id
from service.api.statuses import STATUS
from service.errors import ServiceError
from service.serving.metrics.metrics import Metrics

MEDIA_TYPE = "application/problem+json"
_INFERENCE = "/v2"
_TITLES = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}

_HEADERS: Mapping[type[ServiceError], Mapping[str, str]] = {
    errors.Unauthorized: {"WWW-Authenticate": "Bearer"},
    errors.CompressedBody: {"Accept-Encoding": "identity"},
}  # that an error's response has besides


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:googlenet-service:problem:unreadable_image"])]
    title: Annotated[str, Field(examples=["Unprocessable Entity"])]
    status: Annotated[int, Field(examples=[422])]
    detail: Annotated[str, Field(examples=["the JPEG image is broken or cut short; send it whole"])]
    code: Annotated[str, Field(examples=["unreadable_image"])]
    instance: Annotated[str, Field(description="names the request, as X-Request-ID does")]
    retry_after_ms: Annotated[
        int | None, Field(description="when the same request may be answered")
    ] = None


class Failure(BaseModel):
    """What went wrong, as the Open Inference Protocol says it."""

    error: Annotated[str, Field(examples=["the JPEG image is broken or cut short; send it whole"])]


def problem(status: int, code: str, detail: str, request: Request) -> Problem:
    """Make the body of an error response."""
    return Problem(
        type=f"urn:googlenet-service:problem:{code}",
        title=_TITLES[status],
        status=status,
        detail=detail,
        code=code,
        instance=f"urn:googlenet-service:request:{request_id(request.scope)}",
    )


def of(error: ServiceError, request: Request) -> Problem:
    """Describe one of the service's own errors."""
    described = problem(STATUS[type(error)].http, error.code, str(error), request)
    if isinstance(error, errors.Unavailable):
        return described.model_copy(update={"retry_after_ms": math.ceil(error.retry_after * 1000)})
    return described


def is_inference(path: str) -> bool:
    """Tell whether a path is the Open Inference Protocol's, whose errors have a body of its own."""
    return path == _INFERENCE or path.startswith(f"{_INFERENCE}/")


def response(described: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Make the response of a problem, with `Retry-After` where it has a retry time."""
    sent = dict(headers or {})
    if described.retry_after_ms is not None:
        # The header has whole seconds only.
        sent["Retry-After"] = str(max(1, math.ceil(described.retry_after_ms / 1000)))
    return Response(
        described.model_dump_json(exclude_none=True), described.status, sent, MEDIA_TYPE
    )


def refusal(error: ServiceError, request: Request, metrics: Metrics) -> Response:
    """Make the response of one of the service's own errors; count and log its code."""
    metrics.rejected(error, background=is_background(request.scope))
    note(request.scope, {"code": error.code})
    return _protocol_response(of(error, request), request, _HEADERS.get(type(error)))


def documented(*statuses: int, template: str = "") -> dict[int | str, dict[str, Any]]:
    """Describe the error responses of a route, for its OpenAPI."""
    media_type, name = (
        ("application/json", "Failure") if is_inference(template) else (MEDIA_TYPE, "Problem")
    )
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


async def on_bug(request: Request, _: Exception) -> Response:
    """Respond 500 to an unexpected exception; the middleware raises it again, to be logged."""
    bug = problem(500, ServiceError.code, "an internal error; it was logged", request)
    return _protocol_response(bug, request)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Register the handlers of every expected error."""

    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)  # noqa: S101 - registered for it below
        return refusal(error, request, metrics)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - the same
        first = error.errors()[0]
        # Where it is, its name, and names of types that pydantic tried.
        detail = parameters.sentence(first["loc"][1:2], first["msg"])
        return refusal(errors.InvalidParameter(detail), request, metrics)

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_http(request: Request, error: Exception) -> Response:
    """Respond to an error of the framework, 404 and 405 with a hint."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    status, code = error.status_code, HTTPStatus(error.status_code).name.lower()
    headers, detail = dict(error.headers or {}), error.detail
    if status == HTTPStatus.NOT_FOUND:
        detail = not_found_hints.not_found(path(request.scope), _paths(request.app))
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        headers["Allow"] = ", ".join(allowed)
        detail = not_found_hints.not_allowed(request.method, path(request.scope), allowed)
    return _protocol_response(problem(status, code, detail, request), request, headers)


def _protocol_response(
    described: Problem, request: Request, headers: Mapping[str, str] | None = None
) -> Response:
    """Make the response of a problem in the format of the protocol that the path belongs to."""
    made = response(described, headers)
    if not is_inference(path(request.scope)):
        return made
    del made.headers["content-type"], made.headers["content-length"]
    body = Failure(error=described.detail).model_dump_json()
    return Response(body, described.status, made.headers, "application/json")


def _paths(app: FastAPI) -> list[str]:
    """List the paths without parameters."""
    return [template for template in app.openapi()["paths"] if "{" not in template]


def _allowed(request: Request) -> list[str]:
    """List all methods of a path; the router names those of its first route only."""
    scope = {key: request.scope[key] for key in ("type", "path", "root_path", "headers")}
    allowed = [
        method
        for method in not_found_hints.METHODS
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
    return sorted([*allowed, *(["HEAD"] if "GET" in allowed else [])])
