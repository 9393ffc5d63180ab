"""What a call does, step by step, for whoever does the steps.

A call is a generator: it yields a step, is sent what came of it, and returns the result. So all
that is decided is written once, for the client that blocks and for the one that does not.
"""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from service.client import errors, results, retries
from service.client.errors import ClientError, Failed, Rejected, TimedOut, Unauthorized, Unreachable
from service.client.reading import ImageInput
from service.client.results import Explanation, Models, Ranking

T = TypeVar("T")

MOST_IMAGES = 16  # in a request: what the service takes by default
MOST_BYTES = 16 * 1024 * 1024  # the same, with room for what a form adds

_BINARY = "application/octet-stream"
_HOPELESS = (Unauthorized, Unreachable, TimedOut)  # and so for all that would come after


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask; several images go as a form."""

    method: str
    path: str
    query: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send a request; comes to a `Reply`, or the `ClientError` that kept it away."""

    request: Request
    seconds: float  # that are left


@dataclass(frozen=True, slots=True)
class Wait:
    """A step: let so many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """A step: read an image; comes to bytes, or the `ClientError` that says why not."""

    image: ImageInput


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    proxy: str | None = None  # that it came through


Steps = Generator[Send | Wait | Read, Any, T]


class Patience(TypedDict, total=False):
    """How long a call may take."""

    timeout: float  # seconds


class Wanted(Patience, total=False):
    """What may be asked of an image; what is left out is as the service has it."""

    model: str | None
    views: str | None
    top_k: int | None
    background: bool  # nobody waits for it: others may pass


class Sought(Patience, total=False):
    """What is to be found in an image: a label by its WordNet id, name or index."""

    label: str | int | None
    model: str | None
    views: str | None


@dataclass(frozen=True, slots=True)
class Time:
    """What a call has: until when, by which clock, and who is told of each pause."""

    deadline: float
    now: Callable[[], float]  # seconds
    chance: Callable[[], float]  # from 0 to 1
    waiting: Callable[
        [ClientError, float], None
    ]  # an error, and the seconds until it is asked again

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.now()


def classify(image: ImageInput, wanted: Wanted, time: Time) -> Steps[Ranking]:
    """Rank one image's labels."""
    data = yield from _read(image)
    return (yield from _classify_one(data, wanted, time))


def classify_all(
    images: Iterable[ImageInput], wanted: Wanted, time: Time
) -> Steps[list[Ranking | ClientError]]:
    """Rank the labels of each image, or say what is wrong with it; in their order.

    A request takes as many as the service lets it: fewer are tried when it refuses so many.
    """
    done: list[Ranking | ClientError] = []
    unread = iter(images)
    read: deque[bytes | ClientError] = deque()
    most, hopeless = MOST_IMAGES, None
    while True:
        yield from _fill(read, unread, most)
        if not read:
            return done
        group = _group(read, most)
        if not group:
            done.append(read.popleft())  # type: ignore[arg-type]  # no bytes begin it
        elif hopeless:
            done += [hopeless] * len(group)
        else:
            try:
                done += yield from _classify_group(group, wanted, time)
            except ClientError as error:
                if _is_too_many(error, group):
                    most = len(group) // 2
                    continue
                done += [error] * len(group)
                hopeless = error if isinstance(error, _HOPELESS) else None
        for _ in group:
            read.popleft()


def models(time: Time) -> Steps[Models]:
    """Ask what is served."""
    reply = yield from exchange(Request("GET", "/models"), time)
    return _understood(reply, results.models)


def explain(image: ImageInput, sought: Sought, time: Time) -> Steps[Explanation]:
    """Ask where in an image a label is seen."""
    reply = yield from _explained(image, sought, "application/json", time)
    return _understood(reply, results.explanation)


def heat_map(image: ImageInput, sought: Sought, time: Time) -> Steps[bytes]:
    """Ask for the same as a PNG: the image, with what speaks for the label over it."""
    reply = yield from _explained(image, sought, "image/png", time)
    return reply.body


def reach(time: Time) -> Steps[None]:
    """Ask until anything answers, if only with an error; raises what kept the last answer away.

    Unlike other calls this one is harmless however often it is asked, so a connection that is
    closed without an answer, as by the port of a container that is starting, is tried again too.
    """
    failures = retries.Failures()
    while True:
        outcome = yield Send(Request("GET", "/livez"), time.left)
        if isinstance(outcome, Reply):
            return
        seconds = retries.pause(outcome, retries.Failures(failures.all), time.chance())
        if seconds is None or seconds >= time.left:
            raise outcome
        failures = failures.after(outcome)
        time.waiting(outcome, seconds)
        yield Wait(seconds)


def exchange(request: Request, time: Time) -> Steps[Reply]:
    """Ask until there is an answer, no hope of one, or no time to ask again."""
    failures = retries.Failures()
    outcome: Reply | ClientError
    outcome = TimedOut("the time for this call is used up", code="deadline_exceeded")
    while True:
        if (left := time.left) <= 0:
            raise outcome
        outcome = yield Send(request, left)
        if isinstance(outcome, Reply):
            if outcome.status == 200:  # noqa: PLR2004 - HTTP's
                return outcome
            outcome = errors.of(outcome.status, outcome.headers, outcome.body, outcome.proxy)
        seconds = retries.pause(outcome, failures, time.chance())
        if seconds is None or seconds >= time.left:
            raise outcome
        failures = failures.after(outcome)
        time.waiting(outcome, seconds)
        yield Wait(seconds)


def _classify_one(data: bytes, wanted: Wanted, time: Time) -> Steps[Ranking]:
    reply = yield from exchange(_posting("/classify", [data], wanted), time)
    return _understood(reply, lambda answer: results.ranking(answer, answer["predictions"]))


def _classify_group(
    group: Sequence[bytes], wanted: Wanted, time: Time
) -> Steps[list[Ranking | ClientError]]:
    if len(group) == 1:
        return [(yield from _classify_one(group[0], wanted, time))]
    reply = yield from exchange(_posting("/classify", group, wanted), time)
    found = _understood(reply, lambda answer: [_result(answer, one) for one in answer["results"]])
    if len(found) != len(group):
        raise _not_understood(reply)
    return found


def _result(answer: Mapping[str, Any], one: Mapping[str, Any]) -> Ranking | ClientError:
    if one.get("error"):
        return errors.described(one["error"])
    return results.ranking(answer, one["predictions"])


def _explained(image: ImageInput, sought: Sought, accept: str, time: Time) -> Steps[Reply]:
    data = yield from _read(image)
    return (yield from exchange(_posting("/explain", [data], sought, {"Accept": accept}), time))


def _posting(
    path: str,
    images: Sequence[bytes],
    wanted: Wanted | Sought,
    headers: Mapping[str, str] | None = None,
) -> Request:
    query = {
        name: value
        for name, value in wanted.items()
        if name not in {"timeout", "background"} and isinstance(value, str | int)
    }
    kind = {"Content-Type": _BINARY} if len(images) == 1 else {}
    if wanted.get("background"):
        kind["Priority"] = "u=7"  # RFC 9218's background
    return Request("POST", path, query, {**kind, **(headers or {})}, images)


def _read(image: ImageInput) -> Steps[bytes]:
    data: bytes | ClientError = yield Read(image)
    if isinstance(data, ClientError):
        raise data
    return data


def _fill(read: deque[bytes | ClientError], unread: Iterator[ImageInput], most: int) -> Steps[None]:
    """Read on until there is enough for a request."""
    nbytes = sum(len(data) for data in read if isinstance(data, bytes))
    while len(read) < most and nbytes <= MOST_BYTES:
        try:
            image = next(unread)
        except StopIteration:
            return
        data: bytes | ClientError = yield Read(image)
        read.append(data)
        nbytes += len(data) if isinstance(data, bytes) else 0


def _group(read: Iterable[bytes | ClientError], most: int) -> list[bytes]:
    """Give the first images that go together: at least one, unless what is first is none."""
    group: list[bytes] = []
    nbytes = 0
    for data in read:
        if not isinstance(data, bytes) or len(group) == most:
            break
        nbytes += len(data)
        if group and nbytes > MOST_BYTES:
            break
        group.append(data)
    return group


def _is_too_many(error: ClientError, group: Sequence[bytes]) -> bool:
    return isinstance(error, Rejected) and error.status == 413 and len(group) > 1  # noqa: PLR2004 - HTTP's


def _understood(reply: Reply, read: Callable[[Any], T]) -> T:
    try:
        return read(json.loads(reply.body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_understood(reply) from error


def _not_understood(reply: Reply) -> Failed:
    detail = "the answer is not what this service answers" + errors.through(reply.proxy)
    return Failed(detail, code=errors.INVALID, status=reply.status)
