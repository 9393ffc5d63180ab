"""The response to a request that is refused before the application sees it."""

import logging
from http import HTTPStatus

from fastapi import Request

from service.api import problem_details
from service.api.middleware import request_log, security_headers
from service.errors import ServiceError

logger = logging.getLogger(__name__)


def encode(error: ServiceError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Write a whole HTTP/1.1 response with the problem, which closes the connection; logs it."""
    request = Request({"type": "http", "headers": []})
    request_log.name(request.scope)
    response = problem_details.response(
        problem_details.of(error, request),
        {"X-Request-ID": request_log.request_id(request.scope), "Connection": "close"},
    )
    status = HTTPStatus(response.status_code)
    logger.info("connection refused: %d, %s", status, error)
    security_headers.protect(response.headers)
    lines = [b"%b: %b\r\n" % header for header in (*default_headers, *response.raw_headers)]
    start = f"HTTP/1.1 {status} {status.phrase}\r\n".encode()
    return b"".join([start, *lines, b"\r\n", bytes(response.body)])
