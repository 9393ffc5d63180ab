"""The worker client and the call handler, with a fake engine, connected within this process."""

import asyncio
import io
import pickle
import threading
from collections.abc import Coroutine
from typing import Any, cast

import numpy as np
import pytest
from conftest import fake_backend, in_event_loop
from fake_worker import (
    BOUNDS,
    FakeEngine,
    Silent,
    Threads,
    pair,
)
from PIL import Image
from test_batcher import settle

from service import cpu_info
from service.errors import (
    InferenceFailed,
    Interrupted,
    UnreadableImage,
    UnsupportedType,
)
from service.imaging.image_decoder import Bounds
from service.worker.channel import EXITED
from service.worker.child_process import ChildProcess
from service.worker.client import WorkerClient
from service.worker.messages import LENGTH, Call, Loaded, Prepare, framed


async def test_executor_gets_the_images_prepared_for_its_member() -> None:
    with pair(members=2, executors=2) as both:
        a, b = await both.prepare("a"), await both.prepare("b")
        assert len(a) == len(b) == 2  # one for each member
        assert await both.run(a[0], b[0]) == [("a 0", 0, 2), ("b 0", 0, 2)]
        assert await both.run(b[1], member=1, executor=1) == [("b 1", 0, 2)]


def test_executors_have_their_devices() -> None:
    loaded = Loaded(fake_backend().ensemble, (0, 1, 0))
    process = Threads(FakeEngine())
    ours = WorkerClient(cast("ChildProcess", process), loaded, 1)
    assert [executor.device for executor in ours.executors] == [0, 1, 0]
    process.end()


async def test_executors_and_decoders_run_concurrently() -> None:
    """Each has a channel of its own, so a slow call delays no other."""
    with pair(executors=2, decoders=2) as both:
        (handle,) = await both.prepare()
        both.engine.go.clear()
        held = asyncio.create_task(both.prepare("held"))
        await both.engine.begun()
        answers = await asyncio.gather(both.run(handle), both.run(handle, executor=1))
        assert answers == [[("a 0", 0, 2)]] * 2
        assert not held.done()
        both.engine.go.set()
        await held


async def test_default_is_one_decoder_per_core() -> None:
    cores = cpu_info.available()
    with pair(decoders=0) as both:
        both.engine.go.clear()
        tasks = [asyncio.create_task(both.prepare()) for _ in range(2 * cores)]
        for _ in range(cores):
            await both.engine.begun()
        both.engine.go.set()
        await asyncio.gather(*tasks)
        assert both.engine.most == cores


async def test_concurrent_decodes_are_limited_to_the_decoders() -> None:
    with pair(decoders=3) as both:
        both.engine.go.clear()
        names = [f"image {number}" for number in range(50)]
        tasks = [asyncio.create_task(both.prepare(name)) for name in names]
        for _ in range(3):
            await both.engine.begun()
        both.engine.go.set()
        handles = [handle for (handle,) in await asyncio.gather(*tasks)]
        assert both.engine.most == 3
        assert len({handle.number for handle in handles}) == 50
        assert both.engine.kept == sorted(f"{name} 0" for name in names)
        assert await both.run(*handles) == [(f"{name} 0", 0, 2) for name in names]


@pytest.mark.parametrize("length", [0, 1, 65_532, 65_536, 1_000_000])
async def test_long_calls_and_responses(length: int) -> None:
    with pair() as both:
        (handle,) = await both.prepare("x" * length)
        assert await both.run(handle) == [("x" * length + " 0", 0, 2)]


async def test_response_in_single_bytes() -> None:
    with pair(silent := Silent(FakeEngine()), decoders=1) as both:
        asking = asyncio.create_task(both.prepare())
        for byte in framed((7, 2)):
            await settle()
            assert not asking.done()
            silent.theirs[-1].send(bytes([byte]))
        assert [handle.number for handle in await asking] == [7, 7]


# Prepared images kept in the worker.


async def test_images_without_handles_are_freed_at_the_next_call() -> None:
    with pair() as both:
        a, b = await both.prepare("a"), await both.prepare("b")
        del a
        assert both.engine.kept == ["a 0", "b 0"]
        await both.run(*b)
        assert both.engine.kept == ["b 0"]
        del b
        c = await both.prepare("c")
        assert both.engine.kept == ["c 0"]
        del c


async def test_image_is_kept_while_one_member_has_a_handle() -> None:
    with pair(members=2) as both:
        first, second = await both.prepare("a")
        del first
        assert await both.run(second, member=1) == [("a 1", 0, 2)]
        assert both.engine.kept == ["a 0", "a 1"]
        del second
        assert await both.run() == []
        assert both.engine.kept == []


async def test_images_of_a_running_batch_are_kept() -> None:
    with pair(executors=2) as both:
        running = asyncio.create_task(both.run(*await both.prepare("a")))
        await both.run(executor=1)  # the first call after all handles but the batch's are gone
        assert await running == [("a 0", 0, 2)]
        del running
        await both.run()
        assert both.engine.kept == []


async def test_failed_decodes_keep_nothing_and_have_an_error_each() -> None:
    with pair() as both:
        requests = [both.prepare("bad") for _ in range(5)]
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert {(type(error), str(error)) for error in errors} == {(UnreadableImage, "it is bad")}
        assert len({id(error) for error in errors}) == 5
        assert both.engine.kept == []


# Cancelled requests.


async def test_cancelled_decode_keeps_its_thread_until_it_is_done() -> None:
    with pair(decoders=1) as both:
        both.engine.go.clear()
        hasty = asyncio.create_task(both.prepare("hasty"))
        await both.engine.begun()
        patient = asyncio.create_task(both.prepare("patient"))
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        del hasty
        both.engine.go.set()
        handles = [*await patient, *await both.prepare("next")]
        assert both.engine.most == 1  # the thread ended first what it had begun
        assert both.engine.kept == ["next 0", "patient 0"]
        assert len(handles) == 2


async def test_cancelled_requests_lose_no_channel() -> None:
    with pair(decoders=2) as both:
        for _ in range(3):
            both.engine.go.clear()
            leaving = [asyncio.create_task(both.prepare(f"{n}")) for n in range(5)]
            await both.engine.begun()
            await both.engine.begun()  # two are being decoded, and three wait for that
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            both.engine.go.set()
            await both.prepare()
            await both.engine.begun()  # so that the next one to begin is another
        both.engine.go.clear()
        staying = [asyncio.create_task(both.prepare(f"{n}")) for n in range(2)]
        await both.engine.begun()
        await both.engine.begun()  # both connections are there
        both.engine.go.set()
        handles = await asyncio.gather(*staying)
        del leaving
        await both.run()
        assert both.engine.kept == ["0 0", "1 0"]
        assert len(handles) == 2


async def test_unpicklable_request_loses_no_channel() -> None:
    with pair(decoders=1) as both:
        with pytest.raises(TypeError, match="pickle"):
            await both.worker.prepare(threading.Lock(), "single", Bounds(1))  # type: ignore[arg-type]
        assert len(await both.prepare()) == 1


async def test_paint_does_not_change_the_decode_prediction() -> None:
    with pair(decoders=1) as both:
        await both.prepare()
        before = both.worker.decode_wait(100)
        file = io.BytesIO()
        Image.new("RGB", (2000, 2000), "red").save(file, "PNG")
        heat = np.ones((2, 2), np.float32)
        drawn = await both.worker.paint(file.getvalue(), heat, BOUNDS)
        assert drawn.startswith(b"\x89PNG")
        assert both.worker.decode_wait(100) == before
        with pytest.raises(UnsupportedType):
            await both.worker.paint(b"no image", heat, BOUNDS)


async def test_error_of_a_cancelled_request_is_not_logged() -> None:
    with pair(decoders=1) as both:
        both.engine.go.clear()
        task = asyncio.create_task(both.prepare("bad"))
        await both.engine.begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        both.engine.go.set()
        await both.prepare()  # by the same thread, so the other is done
    # fails if the loop reports an error


def test_event_loop_may_close_before_a_cancelled_decode_is_done() -> None:
    with pair(decoders=1) as both:

        async def scene() -> None:
            both.engine.go.clear()
            task = asyncio.create_task(both.prepare())
            await both.engine.begun()
            task.cancel()

        in_event_loop(scene())


async def test_cancelled_batch_does_not_wait_for_its_executor() -> None:
    with pair(Silent(FakeEngine())) as both:
        running = asyncio.create_task(cast("Coroutine[Any, Any, Any]", both.run()))
        await settle()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


# Failures.


@pytest.mark.parametrize("what", ["prepare", "run"])
async def test_unexpected_error_has_the_worker_traceback(what: str) -> None:
    with pair() as both:
        handles = await both.prepare()
        with pytest.raises(RuntimeError) as caught:
            await (both.prepare("bug") if what == "prepare" else both.run(*handles, size=13))
        assert str(caught.value) == "ZeroDivisionError: by nought"
        (note,) = caught.value.__notes__
        assert note.startswith("Traceback (most recent call last):\n")
        assert f"in {what}\n" in note or f"in _{what}\n" in note
        assert await both.run(*handles) == [("a 0", 0, 2)]  # and the thread goes on


async def test_service_error_passes_unchanged() -> None:
    with pair() as both, pytest.raises(InferenceFailed, match=r"^no more memory$"):
        await both.run(*await both.prepare(), size=14)


async def test_broken_connection_fails_waiting_and_later_calls() -> None:
    with pair(silent := Silent(FakeEngine()), decoders=1) as both:
        waiting: list[asyncio.Task[object]] = [
            asyncio.create_task(call)
            for call in (both.prepare("asks"), both.prepare("waits for it"), both.run())
        ]
        await settle()
        silent.disconnect()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [InferenceFailed, Interrupted, Interrupted]
        assert [str(error) for error in errors] == [EXITED] * 3
        assert len({id(error) for error in errors}) == 3
        for call in (both.prepare(), both.run()):
            with pytest.raises(Interrupted, match=EXITED):
                await call


@pytest.mark.parametrize(
    "garbage",
    [b"no pickle", pickle.dumps(Call(Prepare(b"a", "single", Bounds(99)), (99,)))],
    ids=["no call", "a call that forgets what is not there"],
)
async def test_failed_worker_thread_fails_one_call_and_is_replaced(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pair(decoders=1) as both:
        (kept,) = await both.prepare("kept")
        for channel in both.worker._channels:  # noqa: SLF001 - nothing else makes a thread fail
            await asyncio.get_running_loop().sock_sendall(
                channel._connection,  # noqa: SLF001 - the same
                LENGTH.pack(len(garbage)) + garbage,
            )
        for call in (both.prepare(), both.run(kept)):
            with pytest.raises(InferenceFailed, match="failed; retry the request"):
                await call
        (handle,) = await both.prepare("next")
        assert await both.run(kept, handle) == [("kept 0", 0, 2), ("next 0", 0, 2)]
    assert [record.message for record in caplog.records] == [
        "worker thread failed, closing its connection"
    ] * 2


async def test_close_ends_idle_channels_at_once_and_busy_ones_after_their_call() -> None:
    with pair(executors=2, decoders=2) as both:
        both.engine.go.clear()
        held = asyncio.create_task(both.prepare())
        await both.engine.begun()
        both.worker.close()
        assert not both.worker.alive
        both.engine.go.set()
        (handle,) = await held
        for call in (both.prepare(), both.run(handle)):
            with pytest.raises(InferenceFailed, match=EXITED):
                await call
        await asyncio.to_thread(both.process.join)


@pytest.mark.parametrize(
    "sent",
    [
        LENGTH.pack(100)[:2],
        LENGTH.pack(100) + b"begun",
    ],
    ids=["a length", "a call"],
)
def test_connection_closed_within_a_call_ends_the_thread(sent: bytes) -> None:
    process = Threads(FakeEngine())
    process.connect().sendall(sent)
    process.end()


def test_connection_closed_before_the_response_ends_the_thread() -> None:
    engine = FakeEngine()
    engine.go.clear()
    process = Threads(engine)
    connection = process.connect()
    connection.sendall(framed(Call(Prepare(b"a", "single", Bounds(99)), ())))
    connection.close()
    engine.go.set()
    process.end()
