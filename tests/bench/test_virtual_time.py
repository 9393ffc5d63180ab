"""The event loop whose clock jumps."""

import asyncio

import pytest

from service.bench.capacity import virtual_time


def test_timers_fire_in_the_order_of_their_times_and_the_clock_stands_at_each() -> None:
    async def sleep_in_turn() -> list[tuple[str, float]]:
        clock, fired = asyncio.get_running_loop().time, []

        async def sleep(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append((name, clock()))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sleep("a day", 86_400.0))
            tasks.create_task(sleep("an hour", 3600.0))
        return fired

    fired = virtual_time.run(sleep_in_turn())
    assert [name for name, _ in fired] == ["an hour", "a day"]
    assert [moment for _, moment in fired] == pytest.approx([3600, 86_400])


def test_a_timeout_ends_at_its_virtual_time() -> None:
    async def wait() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(wait()) == pytest.approx(60)


def test_waiting_without_a_timer_raises_rather_than_hangs() -> None:
    with pytest.raises(RuntimeError, match="no timer is set"):
        virtual_time.run(asyncio.Event().wait())
