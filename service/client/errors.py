"""The errors that the client raises, one class per way to handle them."""

import json
import sys
from collections.abc import Mapping
from typing import Any

INVALID = "invalid_answer"  # the code for a response that the service would not send


class ClientError(Exception):
    """A call failed; `detail`, which is `str(error)`, is a sentence.

    `code` is a stable identifier, `status` that of the response if there was one, and
    `retry_after` the seconds after which the same call may succeed, where the service sent them.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.retry_after = retry_after


class Rejected(ClientError):
    """The request is invalid, as for a broken image or an unknown parameter; do not retry."""


class Unauthorized(ClientError):
    """The service requires an API key and does not accept this one."""


class Unavailable(ClientError):
    """The service is overloaded or still loading, or the key's rate limit is reached."""


class Failed(ClientError):
    """The service has an internal error, or the response is not from the service."""


class TimedOut(ClientError):
    """No response came in time, by the client's clock or, with a status, the service's."""


class Unreachable(ClientError):
    """The connection cannot be made, or was closed before the response (`disconnected`).

    `is_permanent` says that a retry cannot succeed, as for a malformed URL or a bad certificate.
    """

    def __init__(
        self, detail: str, *, disconnected: bool = False, is_permanent: bool = False
    ) -> None:
        super().__init__(detail, code="unreachable")
        self.disconnected = disconnected
        self.is_permanent = is_permanent


class Unreadable(ClientError):
    """The image's file cannot be read."""


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, proxy: str | None = None
) -> ClientError:
    """Convert a response with an error status, with or without a problem document.

    One without a problem document may be from the `proxy`, which its detail then names.
    """
    problem = _problem(body)
    if problem is None:
        detail = f"the response has status {status} and no error message{via(proxy)}"
        code, seconds = INVALID, None
    else:
        detail, code, seconds = problem["detail"], problem["code"], _retry_after(problem)
    if seconds is None:
        seconds = _retry_after_header(headers.get("retry-after", ""))
    return _class(status)(detail, code=code, status=status, retry_after=seconds)


def via(proxy: str | None) -> str:
    """Return the end of a message about a response that came through a proxy."""
    return f"; it came through the proxy {proxy}" if proxy else ""


def from_problem(problem: Mapping[str, Any]) -> ClientError:
    """Convert the problem document of one of several images."""
    status = problem["status"]
    return _class(status)(
        problem["detail"], code=problem["code"], status=status, retry_after=_retry_after(problem)
    )


def _class(status: int) -> type[ClientError]:
    classes = {401: Unauthorized, 429: Unavailable, 503: Unavailable, 504: TimedOut}
    default: type[ClientError] = Rejected if 400 <= status < 500 else Failed  # noqa: PLR2004 - HTTP's
    return classes.get(status, default)


def _problem(body: bytes) -> dict[str, Any] | None:
    """Read an RFC 9457 problem document as the service writes it."""
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    if not isinstance(problem, dict):
        return None
    texts = (problem.get("detail"), problem.get("code"))
    return problem if all(isinstance(text, str) for text in texts) else None


def _retry_after(problem: Mapping[str, Any]) -> float | None:
    """Read `retry_after_ms`, in seconds."""
    milliseconds = problem.get("retry_after_ms")
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    return milliseconds / 1000 if _is_duration(milliseconds) else None


def _retry_after_header(header: str) -> float | None:
    """Read `Retry-After` in seconds; a date is ignored, as it needs both clocks to agree."""
    seconds = float(header) if header.isdecimal() else None
    return seconds if seconds is not None and _is_duration(seconds) else None


def _is_duration(value: float) -> bool:
    return 0 <= value <= sys.float_info.max  # an int may be larger, and `inf` is
