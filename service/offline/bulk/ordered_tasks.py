"""Many at a time, their results in the order in which they were begun."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from service.errors import ServiceError
from service.offline.bulk.image_source import Source

R = TypeVar("R")

HELD = 4096  # results that may wait for an earlier one; they are small

_CHUNK = 32  # sources found at once
_CHUNK_BYTES = 16 * 1024 * 1024  # the same, of those that are in memory


async def run(
    sources: Iterator[Source],
    work: Callable[[Source], Awaitable[R]],
    put: Callable[[R], None],
    most: Callable[[], int],
) -> None:
    """Work on sources, at most so many at a time, and put each result.

    A result is put as soon as those of all before it were. What is found next is looked for
    meanwhile, in a thread. The first error of any ends all; what was put by then stays.
    """
    pending: deque[list[R]] = deque()  # a place for each result, which is empty until it is there
    running, changed = 0, asyncio.Event()

    def settle() -> None:
        while pending and pending[0]:
            put(pending.popleft().pop())

    async def begun(source: Source, place: list[R]) -> None:
        nonlocal running
        place.append(await work(source))
        settle()
        running -= 1
        changed.set()

    try:
        async with asyncio.TaskGroup() as tasks:
            chunk = await asyncio.to_thread(_found, sources)
            while chunk:
                ahead = tasks.create_task(asyncio.to_thread(_found, sources))
                for source in chunk:
                    while running >= most() or len(pending) >= HELD:
                        changed.clear()
                        await changed.wait()
                    place: list[R] = []
                    pending.append(place)
                    running += 1
                    tasks.create_task(begun(source, place))
                chunk = await ahead
    except* ServiceError as errors:
        raise _first(errors) from None


def _found(sources: Iterator[Source]) -> list[Source]:
    chunk: list[Source] = []
    held = 0
    for source in sources:
        chunk.append(source)
        held += source.held
        if len(chunk) == _CHUNK or held >= _CHUNK_BYTES:
            break
    return chunk


def _first(errors: BaseExceptionGroup[ServiceError]) -> BaseException:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
