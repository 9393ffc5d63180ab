"""Classification of many images, in requests of several images each."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from service.client import calls, errors, results
from service.client.errors import ClientError, Rejected, TimedOut, Unauthorized, Unreachable
from service.client.exchange import exchange, invalid, parse
from service.client.image_input import ImageInput
from service.client.options import ClassifyOptions
from service.client.results import Ranking
from service.client.steps import CallContext, Read, Steps

MAX_IMAGES = 16  # in a request: the service's default
MAX_BYTES = 16 * 1024 * 1024  # of a request's images; the service's default, less the form's own

_FATAL = (Unauthorized, Unreachable, TimedOut)  # errors that all later requests would have too

Images = deque[bytes | ClientError]  # read, in order


def classify_all(
    images: Iterable[ImageInput], options: ClassifyOptions, context: CallContext
) -> Steps[list[Ranking | ClientError]]:
    """Rank each image's labels, or return its error; in order.

    A request of too many images for the service is sent again with half as many.
    """
    done: list[Ranking | ClientError] = []
    unread = iter(images)
    pending: Images = deque()
    limit, fatal = MAX_IMAGES, None
    while True:
        yield from _fill(pending, unread, limit)
        if not pending:
            return done
        group = _first_group(pending, limit)
        if not group:
            done.append(pending.popleft())  # type: ignore[arg-type]  # an error: it begins no group
        elif fatal:
            done += [fatal] * len(group)
        else:
            try:
                done += yield from _classify_group(group, options, context)
            except ClientError as error:
                if _is_too_many(error, group):
                    limit = len(group) // 2
                    continue
                done += [error] * len(group)
                fatal = error if isinstance(error, _FATAL) else None
        for _ in group:
            pending.popleft()


def _classify_group(
    group: Sequence[bytes], options: ClassifyOptions, context: CallContext
) -> Steps[list[Ranking | ClientError]]:
    if len(group) == 1:
        return [(yield from calls.classify_bytes(group[0], options, context))]
    response = yield from exchange(calls.post("/classify", group, options), context)
    outcomes = parse(response, lambda body: [_outcome(body, item) for item in body["results"]])
    if len(outcomes) != len(group):
        raise invalid(response)
    return outcomes


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
