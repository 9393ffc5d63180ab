"""Errors as RFC 9457 problems: the only place that knows both an error and its status."""

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
from service.errors import ServiceError
from service.serving.metrics.metrics import Metrics

MEDIA_TYPE = "application/problem+json"
_INFERENCE = "/v2"
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it, the metrics count it

STATUS: Mapping[type[ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.UnknownLabel: 404,
    errors.BodyTimeout: 408,
    errors.HeaderTimeout: 408,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.UnsupportedType: 415,
    errors.CompressedBody: 415,
    errors.UnreadableImage: 422,
    errors.InvalidParameter: 422,
    errors.MissingFile: 422,
    errors.CannotServe: 422,
    errors.RateLimited: 429,
    errors.ClientDisconnected: CLIENT_CLOSED_REQUEST,
    errors.HeadTooLarge: 431,
    errors.InferenceFailed: 500,
    errors.OutOfMemory: 500,
    errors.NotExplainable: 501,
    errors.Overloaded: 503,
    errors.NotReady: 503,
    errors.DeadlineExceeded: 504,
    errors.CapacityExceeded: 507,
}

_TOLD: Mapping[type[ServiceError], Mapping[str, str]] = {
    errors.Unauthorized: {"WWW-Authenticate": "Bearer"},
    errors.CompressedBody: {"Accept-Encoding": "identity"},
}  # headers that an error has besides


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
    """Make the body of an error."""
    known = status in {known.value for known in HTTPStatus}
    return Problem(
        type=f"urn:googlenet-service:problem:{code}",
        title=HTTPStatus(status).phrase if known else "Client Closed Request",
        status=status,
        detail=detail,
        code=code,
        instance=f"urn:googlenet-service:request:{request_id(request.scope)}",
    )


def of(error: ServiceError, request: Request) -> Problem:
    """Describe one of the service's own errors."""
    described = problem(STATUS[type(error)], error.code, str(error), request)
    if isinstance(error, errors.Unavailable):
        return described.model_copy(update={"retry_after_ms": math.ceil(error.retry_after * 1000)})
    return described


def is_inference(path: str) -> bool:
    """Tell whether a path is the Open Inference Protocol's, whose errors have a body of its own."""
    return path == _INFERENCE or path.startswith(f"{_INFERENCE}/")


def answer(
    described: Problem, request: Request, headers: Mapping[str, str] | None = None
) -> Response:
    """Make the answer that carries a problem, in the words of the protocol that was spoken."""
    made = response(described, headers)
    if not is_inference(path(request.scope)):
        return made
    del made.headers["content-type"], made.headers["content-length"]
    body = Failure(error=described.detail).model_dump_json()
    return Response(body, described.status, made.headers, "application/json")


def response(described: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Make the answer that carries a problem."""
    sent = dict(headers or {})
    if described.retry_after_ms is not None:
        # The header knows whole seconds only.
        sent["Retry-After"] = str(max(1, math.ceil(described.retry_after_ms / 1000)))
    return Response(
        described.model_dump_json(exclude_none=True), described.status, sent, MEDIA_TYPE
    )


def refusal(error: ServiceError, request: Request, metrics: Metrics) -> Response:
    """Refuse a request with one of the service's own errors; count and note why."""
    metrics.rejected(error, background=is_background(request.scope))
    note(request.scope, {"code": error.code})
    return answer(of(error, request), request, _TOLD.get(type(error)))


def documented(*statuses: int, template: str = "") -> dict[int | str, dict[str, Any]]:
    """Describe the problems a route may answer with, for its OpenAPI."""
    kind, name = (
        ("application/json", "Failure") if is_inference(template) else (MEDIA_TYPE, "Problem")
    )
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {kind: {"schema": schema}}}
        for status in statuses
    }


async def on_bug(request: Request, _: Exception) -> Response:
    """Answer what nobody expected; the middleware that asks raises it again, to be logged."""
    bug = problem(500, ServiceError.code, "an internal error; it was logged", request)
    return answer(bug, request)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error that the app knows of with a problem."""

    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)  # noqa: S101 - registered for it below
        return refusal(error, request, metrics)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - the same
        first = error.errors()[0]
        detail = parameters.sentence(first["loc"][1:], first["msg"])
        return refusal(errors.InvalidParameter(detail), request, metrics)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - the same
        status, code = error.status_code, HTTPStatus(error.status_code).name.lower()
        told, detail = dict(error.headers or {}), error.detail
        if status == HTTPStatus.NOT_FOUND:
            detail = not_found_hints.not_found(path(request.scope), _paths(request.app))
        elif status == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = _allowed(request)
            told["Allow"] = ", ".join(allowed)
            detail = not_found_hints.not_allowed(request.method, path(request.scope), allowed)
        return answer(problem(status, code, detail, request), request, told)

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _paths(app: FastAPI) -> list[str]:
    """List the paths that have no name of a model in them."""
    return [template for template in app.openapi()["paths"] if "{" not in template]


def _allowed(request: Request) -> list[str]:
    """List all methods of a path: the router names those of the first of its routes."""
    asked = {key: request.scope[key] for key in ("type", "path", "root_path", "headers")}
    allowed = [
        method
        for method in not_found_hints.METHODS
        if any(
            route.matches({**asked, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
    return sorted([*allowed, *(["HEAD"] if "GET" in allowed else [])])
