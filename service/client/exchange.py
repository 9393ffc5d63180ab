"""One request and its response, retried until the call's deadline."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from service.client import errors, retries
from service.client.errors import ClientError, Failed, TimedOut
from service.client.steps import CallContext, Request, Response, Send, Sleep, Steps

T = TypeVar("T")


def exchange(
    request: Request, context: CallContext, *, is_streamed: bool = False
) -> Steps[Response]:
    """Send a request until its response has status 200; raises the last error."""
    failures = retries.Failures()
    outcome: Response | ClientError
    outcome = TimedOut("the timeout of this call has passed", code="deadline_exceeded")
    while True:
        if (remaining := context.remaining) <= 0:
            raise outcome
        outcome = yield Send(request, remaining, is_streamed)
        if isinstance(outcome, Response):
            if outcome.status == 200:  # noqa: PLR2004 - HTTP's
                return outcome
            outcome = errors.from_response(
                outcome.status, outcome.headers, outcome.body, outcome.proxy
            )
        yield from _sleep(outcome, failures, context)
        failures = failures.after(outcome)


def wait_reachable(context: CallContext) -> Steps[None]:
    """Send GET /livez until there is a response of any status; raises the last error.

    A probe that ends without a response is always retried: the port of a container that is
    starting accepts connections and closes them.
    """
    failures = retries.Failures()
    while True:
        outcome = yield Send(Request("GET", "/livez"), context.remaining)
        if isinstance(outcome, Response):
            return
        yield from _sleep(outcome, retries.Failures(failures.total), context)
        failures = failures.after(outcome)


def parse(response: Response, read: Callable[[Any], T]) -> T:
    """Read a response's JSON; raises `Failed` for one that the service would not send."""
    try:
        return read(json.loads(response.body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise invalid(response) from error


def invalid(response: Response) -> Failed:
    """Return the error for a response that the service would not send."""
    detail = "the response is not one of this service" + errors.via(response.proxy)
    return Failed(detail, code=errors.INVALID, status=response.status)


def _sleep(error: ClientError, failures: retries.Failures, context: CallContext) -> Steps[None]:
    """Sleep before a retry; raises the error if there is none before the deadline."""
    seconds = retries.delay(error, failures, context.jitter())
    if seconds is None or seconds >= context.remaining:
        raise error
    context.on_retry(error, seconds)
    yield Sleep(seconds)
