"""Classification of many images, in requests of several images each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.client import calls, errors, results
from service.client.errors import ClientError, Rejected, TimedOut, Unauthorized, Unreachable
from service.client.exchange import exchange, invalid, parse
from service.client.image_input import ImageInput
from service.client.options import ClassifyOptions
from service.client.results import Ranking
from service.client.steps import (
    CallContext,
    Give,
    NextLine,
    Read,
    Response,
    Steps,
    StepsOfMany,
)

MAX_IMAGES = 16  # in a request: the service's default
MAX_BYTES = 16 * 1024 * 1024  # of a request's images; the service's default, less the form's own

_FATAL = (Unauthorized, Unreachable, TimedOut)  # errors that all later requests would have too

_LINES = "application/x-ndjson"

Images = deque[bytes | ClientError]  # read, in order


@dataclass(frozen=True, slots=True)
class Group:
    """Images of one request, and the place of the first among all."""

    first: int
    images: Sequence[bytes]


def classify_all(
    images: Iterable[ImageInput], options: ClassifyOptions, context: CallContext
) -> Steps[list[Ranking | ClientError]]:
    """Rank each image's labels, or return its error; in order."""
    done: list[Ranking | ClientError] = []
    steps = _each(images, options, context, _classify_group)
    result: object = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            return done
        if isinstance(step, Give):
            done.append(step.outcome)
            result = None
        else:
            result = yield step


def classify_stream(
    images: Iterable[ImageInput], options: ClassifyOptions, context: CallContext
) -> StepsOfMany:
    """Rank each image's labels, and give the ranking or the error when it is there."""
    return _each(images, options, context, _stream_group)


def _each(
    images: Iterable[ImageInput],
    options: ClassifyOptions,
    context: CallContext,
    classify_group: Callable[[Group, ClassifyOptions, CallContext], StepsOfMany],
) -> StepsOfMany:
    """Classify in requests of several images, and give the outcome of each.

    A request of too many images for the service is sent again with half as many.
    """
    unread, pending = iter(images), Images()
    limit, fatal, first = MAX_IMAGES, None, 0
    while True:
        yield from _fill(pending, unread, limit)
        if not pending:
            return
        group = Group(first, _first_group(pending, limit))
        try:
            if not group.images:
                yield Give(first, pending[0])  # an error: it begins no group
            elif fatal:
                raise fatal
            else:
                yield from classify_group(group, options, context)
        except ClientError as error:
            if _is_too_many(error, group.images):
                limit = len(group.images) // 2
                continue
            for index in range(len(group.images)):
                yield Give(first + index, error)
            fatal = error if isinstance(error, _FATAL) else None
        for _ in group.images or [b""]:
            pending.popleft()
            first += 1


def _classify_group(group: Group, options: ClassifyOptions, context: CallContext) -> StepsOfMany:
    if len(group.images) == 1:
        yield Give(
            group.first, (yield from calls.classify_bytes(group.images[0], options, context))
        )
        return
    response = yield from exchange(calls.post("/classify", group.images, options), context)
    outcomes = parse(response, lambda body: [_outcome(body, item) for item in body["results"]])
    if len(outcomes) != len(group.images):
        raise invalid(response)
    for index, outcome in enumerate(outcomes):
        yield Give(group.first + index, outcome)


def _stream_group(group: Group, options: ClassifyOptions, context: CallContext) -> StepsOfMany:
    request = calls.post("/classify", group.images, options, {"Accept": _LINES})
    response = yield from exchange(request, context, is_streamed=True)
    missing = {*range(len(group.images))}
    try:
        while missing:
            line = yield NextLine(response, context.remaining)
            if isinstance(line, ClientError):
                raise line
            index, outcome = _line(replace(response, body=line or b""))
            if index not in missing:
                raise invalid(response)
            missing.remove(index)
            yield Give(group.first + index, outcome)
    except ClientError as error:
        for index in sorted(missing):  # the service has all of them, so they are not sent again
            yield Give(group.first + index, error)


def _line(response: Response) -> tuple[int, Ranking | ClientError]:
    if not response.body:
        raise Unreachable("the response ended before its last line", disconnected=True)
    return parse(response, lambda body: (body["index"], _outcome(body, body)))


def _outcome(body: Mapping[str, Any], item: Mapping[str, Any]) -> Ranking | ClientError:
    if item.get("error"):
        return errors.from_problem(item["error"])
    return results.ranking(body, item)


def _fill(pending: Images, unread: Iterator[ImageInput], limit: int) -> Steps[None]:
    """Read images until there are enough for a request."""
    nbytes = sum(len(data) for data in pending if isinstance(data, bytes))
    while len(pending) < limit and nbytes <= MAX_BYTES:
        try:
            image = next(unread)
        except StopIteration:
            return
        data: bytes | ClientError = yield Read(image)
        pending.append(data)
        nbytes += len(data) if isinstance(data, bytes) else 0


def _first_group(pending: Images, limit: int) -> list[bytes]:
    """Return the first images that fit in a request; none if an unreadable image is first."""
    group: list[bytes] = []
    nbytes = 0
    for data in pending:
        if not isinstance(data, bytes) or len(group) == limit:
            break
        nbytes += len(data)
        if group and nbytes > MAX_BYTES:
            break
        group.append(data)
    return group


def _is_too_many(error: ClientError, group: Sequence[bytes]) -> bool:
    return isinstance(error, Rejected) and error.status == 413 and len(group) > 1  # noqa: PLR2004 - HTTP's
