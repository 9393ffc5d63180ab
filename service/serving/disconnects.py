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
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_raise_when_gone(gone))
            running = [tasks.create_task(work) for work in works]
            await asyncio.wait(running)
            watching.cancel()
    except* ClientDisconnected:
        raise ClientDisconnected("the client disconnected before its response was sent") from None
    return [task.result() for task in running]


async def _raise_when_gone(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
    raise ClientDisconnected
