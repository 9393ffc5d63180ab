"""Cancels a request's work when its client disconnects."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from service.errors import ClientDisconnected

T = TypeVar("T")


async def never() -> None:
    """Wait for ever: the default for a client that is not watched."""
    await asyncio.Event().wait()


async def run_until_gone(
    gone: Callable[[], Awaitable[None]], works: Sequence[Coroutine[Any, Any, T]]
) -> list[T]:
    """Await all; when `gone()` returns first, cancel them and raise `ClientDisconnected`."""
    try:
        async with asyncio.timeout(None) as waiting:
            watching = asyncio.create_task(_expire_when_gone(gone, waiting))
            try:
                return await _all(works)
            finally:
                watching.cancel()
    except TimeoutError:
        raise ClientDisconnected("the client disconnected before its response was sent") from None


async def _expire_when_gone(gone: Callable[[], Awaitable[None]], waiting: asyncio.Timeout) -> None:
    await gone()
    waiting.reschedule(0.0)


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    if len(works) == 1:  # in this task, which is cheaper
        return [await works[0]]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in works]
    return [task.result() for task in running]
