"""Peers: calls in both directions over a real connection, their errors and their end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop

from service.errors import Interrupted, Overloaded
from service.serving.remote.peer import Handlers, Peer

ENDED = "the other process has ended"


@asynccontextmanager
async def connected(
    handlers: Handlers, notes: list[int] | None = None
) -> AsyncIterator[tuple[Peer, Peer]]:
    """A peer that calls, and one with these handlers, which notes what it is told."""
    ours, theirs = socket.socketpair()
    caller = Peer({"double": doubled}, {}, ENDED)
    callee = Peer(handlers, {"note": [].append if notes is None else notes.append}, ENDED)
    async with caller.connected(ours), callee.connected(theirs):
        yield caller, callee


@dataclass(frozen=True)
class Endless:
    """A handler that ends only when it is cancelled."""

    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self) -> None:
        """Wait for ever."""
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def doubled(number: int) -> int:
    return 2 * number


async def test_answers_come_in_any_order_and_both_sides_call() -> None:
    later = asyncio.Event()

    async def slow(content: bytes) -> int:
        await later.wait()
        return len(content)

    async def quick() -> str:
        later.set()
        return "quick"

    async with connected({"slow": slow, "quick": quick}) as (caller, callee):
        large = asyncio.create_task(caller.call("slow", bytes(10**7)))
        await asyncio.sleep(0.01)
        assert await caller.call("quick") == "quick"
        assert await large == 10**7
        assert await callee.call("double", 21) == 42


async def test_notices_are_handled_before_answers_sent_after_them() -> None:
    notes: list[int] = []

    async def noted() -> list[int]:
        return [*notes]

    async with connected({"noted": noted}, notes) as (caller, _):
        for number in range(100):
            caller.notify("note", number)
        assert await caller.call("noted") == [*range(100)]


async def test_errors_cross_with_what_they_carry(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse() -> None:
        raise Overloaded("too much", retry_after=7.5)

    async def break_() -> None:
        raise KeyError("a bug")

    async with connected({"refuse": refuse, "break": break_}) as (caller, _):
        with pytest.raises(Overloaded, match="too much") as refused:
            await caller.call("refuse")
        assert refused.value.retry_after == 7.5
        with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
            await caller.call("break")
    assert "break failed" in caplog.text


async def test_a_cancelled_call_is_cancelled_at_the_other_end() -> None:
    endless = Endless()
    async with connected({"endless": endless.handle}) as (caller, _):
        call = asyncio.create_task(caller.call("endless"))
        await endless.began.wait()
        call.cancel()
        await endless.ended.wait()
        assert call.cancelled()


async def test_the_end_of_the_connection_ends_calls_at_both_ends() -> None:
    endless = Endless()
    ours, theirs = socket.socketpair()
    caller, callee = Peer({}, {}, ENDED), Peer({"endless": endless.handle}, {}, ENDED)
    async with caller.connected(ours) as running:
        async with callee.connected(theirs):
            call = asyncio.create_task(caller.call("endless"))
            await endless.began.wait()
        await running
        await endless.ended.wait()
    with pytest.raises(Interrupted, match=ENDED):
        await call
    assert not caller.is_connected
    with pytest.raises(Interrupted, match=ENDED):
        await caller.call("endless")
    caller.notify("nothing happens")


def test_what_is_sent_just_after_the_other_process_has_ended_is_interrupted() -> None:
    async def call() -> None:
        ours, theirs = socket.socketpair()
        caller = Peer({}, {}, ENDED)
        async with caller.connected(ours):
            theirs.close()
            for _ in range(3):
                caller.notify("note", 1)
                await asyncio.sleep(0)  # its connection is closed, and it is not told yet
            with pytest.raises(Interrupted, match=ENDED):
                await caller.call("double", 1)

    uvloop.run(call())  # it raises where asyncio's loop logs
