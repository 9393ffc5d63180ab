"""What a caller of the service may have to deal with, by what there is to do about it."""

import json
import sys
from collections.abc import Mapping
from typing import Any

INVALID = "invalid_answer"  # the code of an answer that the service would not give


class ClientError(Exception):
    """A call that has no result; `detail`, which is `str(error)`, is a sentence.

    `code` is a word for machines, `status` that of the answer if there was one, and
    `retry_after` the seconds after which the same call may succeed, if somebody said so.
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
    """The service will never answer this: a broken image, or a parameter that it lacks."""


class Unauthorized(ClientError):
    """The service wants an API key, and this is none of its keys."""


class Unavailable(ClientError):
    """Not now: overloaded, still loading, or the key's requests are used up."""


class Failed(ClientError):
    """The service could not do its work, or what answered is not the service."""


class TimedOut(ClientError):
    """The answer did not come in time, by the caller's clock or, with a status, the service's."""


class Unreachable(ClientError):
    """Nobody answers there, or whoever did has hung up; `is_final`: nor will they later."""

    def __init__(self, detail: str, *, hung_up: bool = False, is_final: bool = False) -> None:
        super().__init__(detail, code="unreachable")
        self.hung_up = hung_up
        self.is_final = is_final


class Unreadable(ClientError):
    """The image cannot be read where it is said to be."""


def of(
    status: int, headers: Mapping[str, str], body: bytes, proxy: str | None = None
) -> ClientError:
    """Tell what an answer with an error's status says, also one that has no problem in it.

    One without a problem may be of the `proxy` that it came through.
    """
    problem = _problem(body)
    if problem is None:
        detail = f"the answer is {status}, without a reason{through(proxy)}"
        code, seconds = INVALID, None
    else:
        detail, code, seconds = problem["detail"], problem["code"], _told(problem)
    if seconds is None:
        seconds = _seconds(headers.get("retry-after", ""))
    return _class(status)(detail, code=code, status=status, retry_after=seconds)


def through(proxy: str | None) -> str:
    """Return what a message about an answer adds of the proxy it came through."""
    return f"; it came through the proxy {proxy}" if proxy else ""


def described(problem: Mapping[str, Any]) -> ClientError:
    """Tell what the problem of one of several images says."""
    status = problem["status"]
    return _class(status)(
        problem["detail"], code=problem["code"], status=status, retry_after=_told(problem)
    )


def _class(status: int) -> type[ClientError]:
    known = {401: Unauthorized, 429: Unavailable, 503: Unavailable, 504: TimedOut}
    kind: type[ClientError] = Rejected if 400 <= status < 500 else Failed  # noqa: PLR2004 - HTTP's
    return known.get(status, kind)


def _problem(body: bytes) -> dict[str, Any] | None:
    """Read an RFC 9457 problem as the service writes it."""
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    if not isinstance(problem, dict):
        return None
    texts = (problem.get("detail"), problem.get("code"))
    return problem if all(isinstance(text, str) for text in texts) else None


def _told(problem: Mapping[str, Any]) -> float | None:
    """Understand `retry_after_ms`, to seconds."""
    told = problem.get("retry_after_ms")
    if not isinstance(told, int | float) or isinstance(told, bool):
        return None
    return told / 1000 if _is_time(told) else None


def _seconds(header: str) -> float | None:
    """Understand `Retry-After` in seconds; a date needs both clocks to agree."""
    told = float(header) if header.isdecimal() else None
    return told if told is not None and _is_time(told) else None


def _is_time(told: float) -> bool:
    """Tell whether a number can be one of seconds: not negative, and finite as a float."""
    return 0 <= told <= sys.float_info.max  # of which an int may be more, and `inf` is
