"""Concurrent work on sources, with the results in the order of the sources."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import ServiceError
from service.imaging.archives import Source

R = TypeVar("R")

HELD = 4096  # results that may wait for an earlier one; they are small

_CHUNK = 32  # sources read ahead
_CHUNK_BYTES = 16 * 1024 * 1024  # the same, of those that are in memory


async def run(
    sources: Iterator[Source],
    work: Callable[[Source], Awaitable[R]],
    put: Callable[[R], None],
    concurrency: Callable[[], int],
) -> None:
    """Work on up to `concurrency()` sources at a time, and put the results in order.

    A result is put as soon as all before it are. The next sources are read meanwhile, in a
    thread. The first error cancels the rest; results that were put stay.
    """
    await _Run(work, put, concurrency).run(sources)


@dataclass(slots=True)
class _Run(Generic[R]):
    work: Callable[[Source], Awaitable[R]]
    put: Callable[[R], None]
    concurrency: Callable[[], int]
    pending: deque[list[R]] = field(default_factory=deque)  # by source, empty until its result
    running: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, sources: Iterator[Source]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                chunk = await asyncio.to_thread(_next_chunk, sources)
                while chunk:
                    ahead = tasks.create_task(asyncio.to_thread(_next_chunk, sources))
                    for source in chunk:
                        await self._capacity()
                        result: list[R] = []
                        self.pending.append(result)
                        self.running += 1
                        tasks.create_task(self._work(source, result))
                    chunk = await ahead
        except* ServiceError as errors:
            raise _first(errors) from None

    async def _capacity(self) -> None:
        while self.running >= self.concurrency() or len(self.pending) >= HELD:
            self.changed.clear()
            await self.changed.wait()

    async def _work(self, source: Source, result: list[R]) -> None:
        result.append(await self.work(source))
        while self.pending and self.pending[0]:
            self.put(self.pending.popleft().pop())
        self.running -= 1
        self.changed.set()


def _next_chunk(sources: Iterator[Source]) -> list[Source]:
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
