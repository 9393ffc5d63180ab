"""The worker, seen from both ends: with a fake engine in this process, and as a process."""

import asyncio
import contextlib
import gc
import io
import logging
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from conftest import ROOT, fake_backend, wait_ready
from PIL import Image
from starlette.testclient import TestClient
from test_batcher import play, settle
from test_bench import children
from test_classify import assert_problem, parts

from service import cpu_info
from service.engine import engine
from service.engine.engine import Engine
from service.errors import (
    InferenceFailed,
    MissingWeights,
    ModelError,
    TooLarge,
    UnreadableImage,
    UnsupportedType,
)
from service.imaging.crops import CROP
from service.imaging.image_decoder import Bounds
from service.models.store import Store
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Executor, Slice
from service.server.app import create_app
from service.settings import Settings
from service.worker import client, process
from service.worker.client import _CLOSE_SECONDS, RemoteHandle, Worker, _Process
from service.worker.messages import LENGTH, Call, Loaded, Prepare

BOUNDS = Bounds(10**8)
PATIENCE = 30.0  # seconds, for what happens at once
GONE = "the process that classifies has ended"

T = TypeVar("T")


# The two ends, over connections within this process.


class Prepared:
    """What an image brought for a member; whoever keeps it keeps it alive."""

    def __init__(self, name: str) -> None:
        self.name = name


class FakeEngine:
    """Prepares images that are names, and runs batches by telling whose slices they have."""

    def __init__(self, members: int = 1, executors: int = 1) -> None:
        self.ensemble = fake_backend(members=members).ensemble
        self.executors = tuple(Executor(self._run, number) for number in range(executors))
        self.go = threading.Event()  # to end what is being prepared
        self.go.set()
        self.most = 0  # that were prepared at once
        self._began = threading.Semaphore(0)
        self._made: weakref.WeakSet[Prepared] = weakref.WeakSet()
        self._now = 0
        self._lock = threading.Lock()

    def prepare(self, image: bytes, views: str, bounds: Bounds, target: int = 0) -> list[Prepared]:
        """Give a name for each member, or fail as the image says."""
        assert (views, bounds, target) == ("single", Bounds(99), 0)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._began.release()
        assert self.go.wait(PATIENCE)
        with self._lock:
            self._now -= 1
        if image == b"bad":
            raise UnreadableImage("it is bad")
        if image == b"bug":
            raise ZeroDivisionError("by nought")
        made = [
            Prepared(f"{image.decode()} {number}") for number in range(len(self.ensemble.members))
        ]
        self._made.update(made)
        return made

    async def begun(self) -> None:
        """Wait until one more image is being prepared."""
        assert await asyncio.to_thread(self._began.acquire, timeout=PATIENCE)

    @property
    def kept(self) -> list[str]:
        """What was prepared and is not forgotten."""
        return sorted(one.name for one in self._made)

    @staticmethod
    def _run(batch: Batch[Prepared]) -> list[tuple[str, int, int]]:
        if batch.size == 13:
            raise ZeroDivisionError("by nought")
        if batch.size == 14:
            raise InferenceFailed("no more memory")
        return [(part.payload.name, part.start, part.stop) for part in batch.slices]


class Threads:
    """Stands for the process: its connections are answered by threads of this one."""

    pid = 0
    alive = True

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.ended: Future[None] = Future()
        self._answers = process.Handler(cast("Engine", engine))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        """Give a connection that a thread answers."""
        ours, theirs = socket.socketpair()
        self._threads.append(threading.Thread(target=self._answers.serve, args=[theirs]))
        self._threads[-1].start()
        ours.settimeout(0)
        self._sockets.append(ours)
        return ours

    def close(self) -> None:
        """Do as a process that ends: not wait for its threads."""
        self.alive = False

    def end(self) -> None:
        """Break what is still connected, and see the threads end."""
        for one in self._sockets:
            one.close()
        self.join()

    def join(self) -> None:
        """Wait until every thread has ended, which it does when nobody can call it."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Mute(Threads):
    """Stands for a process that does not answer."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.theirs: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """Give a connection that nobody answers."""
        if not self.alive:
            raise InferenceFailed(GONE)
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        self._sockets.append(ours)
        self.theirs.append(theirs)
        return ours

    def hang_up(self) -> None:
        """End, as far as anybody can tell."""
        self.alive = False
        for one in self.theirs:
            one.close()

    def end(self) -> None:
        """Close both ends."""
        self.hang_up()
        super().end()


@dataclass
class Pair:
    """Both ends."""

    worker: Worker
    engine: FakeEngine
    process: Threads

    async def prepare(self, name: str = "a") -> Sequence[RemoteHandle]:
        """Have an image prepared."""
        await asyncio.sleep(0)  # the loop holds what it last gave for as long as a task goes on
        return await self.worker.prepare(name.encode(), "single", Bounds(99))

    async def run(
        self, *tokens: RemoteHandle, size: int = 8, member: int = 0, executor: int = 0
    ) -> object:
        """Have a lane run one batch of two rows of each."""
        await asyncio.sleep(0)
        results: object = await self.worker.executors[executor].run(batch_of(tokens, size, member))
        return results


@contextmanager
def pair(process: Threads | None = None, *, decoders: int = 2, **shape: int) -> Iterator[Pair]:
    process = process or Threads(FakeEngine(**shape))
    engine = process.engine
    loaded = Loaded(engine.ensemble, tuple(executor.device for executor in engine.executors))
    try:
        ours = Worker(cast("_Process", process), loaded, decoders)
        yield Pair(ours, engine, process)
    finally:
        engine.go.set()
        process.end()


def batch_of(payloads: Sequence[T], size: int, member: int = 0, rows: int = 2) -> Batch[T]:
    slices = tuple(Slice(payload, 0, rows) for payload in payloads)
    return Batch(Key(member, CROP), size, slices, "full")


def test_a_lane_computes_with_what_was_prepared_for_its_member() -> None:
    async def scene() -> None:
        with pair(members=2, executors=2) as both:
            a, b = await both.prepare("a"), await both.prepare("b")
            assert len(a) == len(b) == 2  # one for each member
            assert await both.run(a[0], b[0]) == [("a 0", 0, 2), ("b 0", 0, 2)]
            assert await both.run(b[1], member=1, executor=1) == [("b 1", 0, 2)]

    play(scene)


def test_lanes_have_their_devices() -> None:
    loaded = Loaded(fake_backend().ensemble, (0, 1, 0))
    process = Threads(FakeEngine())
    ours = Worker(cast("_Process", process), loaded, 1)
    assert [executor.device for executor in ours.executors] == [0, 1, 0]
    process.end()


def test_two_lanes_run_at_the_same_time_and_beside_decoders() -> None:
    """Each has a connection of its own: the one that is held up holds up no other."""

    async def scene() -> None:
        with pair(executors=2, decoders=2) as both:
            (token,) = await both.prepare()
            both.engine.go.clear()
            held = asyncio.create_task(both.prepare("held"))
            await both.engine.begun()
            answers = await asyncio.gather(both.run(token), both.run(token, executor=1))
            assert answers == [[("a 0", 0, 2)]] * 2
            assert not held.done()
            both.engine.go.set()
            await held

    play(scene)


def test_by_default_there_is_a_decoder_for_each_core() -> None:
    async def scene() -> None:
        cores = cpu_info.available()
        with pair(decoders=0) as both:
            both.engine.go.clear()
            tasks = [asyncio.create_task(both.prepare()) for _ in range(2 * cores)]
            for _ in range(cores):
                await both.engine.begun()
            both.engine.go.set()
            await asyncio.gather(*tasks)
            assert both.engine.most == cores

    play(scene)


def test_many_at_once_are_no_more_than_there_are_connections_and_all_are_answered() -> None:
    async def scene() -> None:
        with pair(decoders=3) as both:
            both.engine.go.clear()
            names = [f"image {number}" for number in range(50)]
            tasks = [asyncio.create_task(both.prepare(name)) for name in names]
            for _ in range(3):
                await both.engine.begun()
            both.engine.go.set()
            tokens = [token for (token,) in await asyncio.gather(*tasks)]
            assert both.engine.most == 3
            assert len({token.number for token in tokens}) == 50
            assert both.engine.kept == sorted(f"{name} 0" for name in names)
            assert await both.run(*tokens) == [(f"{name} 0", 0, 2) for name in names]

    play(scene)


@pytest.mark.parametrize("length", [0, 1, 65_532, 65_536, 1_000_000])
def test_long_calls_and_long_answers_come_whole(length: int) -> None:
    async def scene() -> None:
        with pair() as both:
            (token,) = await both.prepare("x" * length)
            assert await both.run(token) == [("x" * length + " 0", 0, 2)]

    play(scene)


def test_an_answer_may_come_byte_by_byte() -> None:
    async def scene() -> None:
        with pair(mute := Mute(FakeEngine()), decoders=1) as both:
            asking = asyncio.create_task(both.prepare())
            content = pickle.dumps((7, 2))
            for byte in LENGTH.pack(len(content)) + content:
                await settle()
                assert not asking.done()
                mute.theirs[-1].send(bytes([byte]))
            assert [token.number for token in await asking] == [7, 7]

    play(scene)


# What is kept over there.


def test_what_nobody_holds_any_more_is_forgotten_at_the_next_call() -> None:
    async def scene() -> None:
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

    play(scene)


def test_what_one_member_still_needs_is_kept() -> None:
    async def scene() -> None:
        with pair(members=2) as both:
            first, second = await both.prepare("a")
            del first
            assert await both.run(second, member=1) == [("a 1", 0, 2)]
            assert both.engine.kept == ["a 0", "a 1"]
            del second
            assert await both.run() == []
            assert both.engine.kept == []

    play(scene)


def test_what_is_in_a_batch_is_kept_until_the_batch_is_done() -> None:
    async def scene() -> None:
        with pair(executors=2) as both:
            running = asyncio.create_task(both.run(*await both.prepare("a")))
            await both.run(executor=1)  # the first call after nobody but the batch holds it
            assert await running == [("a 0", 0, 2)]
            del running
            await both.run()
            assert both.engine.kept == []

    play(scene)


def test_a_image_that_failed_leaves_nothing() -> None:
    async def scene() -> None:
        with pair() as both:
            with pytest.raises(UnreadableImage, match=r"^it is bad$"):
                await both.prepare("bad")
            assert both.engine.kept == []

    play(scene)


# Callers who leave.


def test_who_leaves_while_his_image_is_decoded_neither_frees_the_thread_nor_keeps_it() -> None:
    async def scene() -> None:
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
            tokens = [*await patient, *await both.prepare("next")]
            assert both.engine.most == 1  # the thread ended first what it had begun
            assert both.engine.kept == ["next 0", "patient 0"]
            assert len(tokens) == 2

    play(scene)


def test_callers_who_leave_lose_no_connection() -> None:
    async def scene() -> None:
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
            tokens = await asyncio.gather(*staying)
            del leaving
            await both.run()
            assert both.engine.kept == ["0 0", "1 0"]
            assert len(tokens) == 2

    play(scene)


def test_a_image_that_cannot_be_sent_loses_no_connection() -> None:
    async def scene() -> None:
        with pair(decoders=1) as both:
            with pytest.raises(TypeError, match="pickle"):
                await both.worker.prepare(threading.Lock(), "single", Bounds(1))  # type: ignore[arg-type]
            assert len(await both.prepare()) == 1

    play(scene)


def test_what_is_drawn_comes_back_and_is_no_measure_of_decoding() -> None:
    async def scene() -> None:
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

    play(scene)


def test_an_error_that_nobody_waits_for_any_more_is_nobody_s() -> None:
    async def scene() -> None:
        with pair(decoders=1) as both:
            both.engine.go.clear()
            task = asyncio.create_task(both.prepare("bad"))
            await both.engine.begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            both.engine.go.set()
            await both.prepare()  # by the same thread, so the other is done

    play(scene)  # which fails for whatever the loop is told


def test_the_loop_may_end_before_the_thread_that_nobody_waits_for() -> None:
    with pair(decoders=1) as both:

        async def scene() -> None:
            both.engine.go.clear()
            task = asyncio.create_task(both.prepare())
            await both.engine.begun()
            task.cancel()

        play(scene)


def test_a_batcher_that_leaves_does_not_wait_for_a_lane() -> None:
    async def scene() -> None:
        with pair(Mute(FakeEngine())) as both:
            running = asyncio.create_task(cast("Coroutine[Any, Any, Any]", both.run()))
            await settle()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    play(scene)


# What fails.


@pytest.mark.parametrize("what", ["prepare", "run"])
def test_a_bug_over_there_is_told_with_where_it_was(what: str) -> None:
    async def scene() -> None:
        with pair() as both:
            tokens = await both.prepare()
            with pytest.raises(RuntimeError) as caught:
                await (both.prepare("bug") if what == "prepare" else both.run(*tokens, size=13))
            assert str(caught.value) == "ZeroDivisionError: by nought"
            (note,) = caught.value.__notes__
            assert note.startswith("Traceback (most recent call last):\n")
            assert f"in {what}\n" in note or f"in _{what}\n" in note
            assert await both.run(*tokens) == [("a 0", 0, 2)]  # and the thread goes on

    play(scene)


def test_an_error_with_a_sentence_for_the_user_comes_as_it_is() -> None:
    async def scene() -> None:
        with pair() as both, pytest.raises(InferenceFailed, match=r"^no more memory$"):
            await both.run(*await both.prepare(), size=14)

    play(scene)


def test_each_of_many_bad_images_has_an_error_of_its_own() -> None:
    async def scene() -> None:
        with pair() as both:
            told = await asyncio.gather(
                *[both.prepare("bad") for _ in range(5)], return_exceptions=True
            )
            assert {type(error) for error in told} == {UnreadableImage}
            assert len({id(error) for error in told}) == 5

    play(scene)


def test_a_connection_that_breaks_is_told_to_who_waits_and_to_all_who_come_after() -> None:
    async def scene() -> None:
        with pair(mute := Mute(FakeEngine()), decoders=1) as both:
            waiting: list[asyncio.Task[object]] = [
                asyncio.create_task(call)
                for call in (both.prepare("asks"), both.prepare("waits for it"), both.run())
            ]
            await settle()
            mute.hang_up()
            told = await asyncio.gather(*waiting, return_exceptions=True)
            assert [(type(error), str(error)) for error in told] == [(InferenceFailed, GONE)] * 3
            assert len({id(error) for error in told}) == 3
            for call in (both.prepare(), both.run()):
                with pytest.raises(InferenceFailed, match=GONE):
                    await call

    play(scene)


@pytest.mark.parametrize(
    "garbage",
    [b"no pickle", pickle.dumps(Call(Prepare(b"a", "single", Bounds(99)), (99,)))],
    ids=["no call", "a call that forgets what is not there"],
)
def test_a_thread_that_ends_is_told_to_who_waits_and_replaced_for_all_who_come_after(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        with pair(decoders=1) as both:
            (kept,) = await both.prepare("kept")
            for line in both.worker._lines:  # noqa: SLF001 - nothing else can make one end
                await asyncio.get_running_loop().sock_sendall(
                    line._connection,  # noqa: SLF001 - the same
                    LENGTH.pack(len(garbage)) + garbage,
                )
            for call in (both.prepare(), both.run(kept)):
                with pytest.raises(InferenceFailed, match="ended; try again"):
                    await call
            (token,) = await both.prepare("next")
            assert await both.run(kept, token) == [("kept 0", 0, 2), ("next 0", 0, 2)]

    play(scene)
    assert [record.message for record in caplog.records] == ["a thread ends"] * 2


def test_closing_ends_every_connection_and_one_that_is_in_use_when_its_call_ends() -> None:
    async def scene() -> None:
        with pair(executors=2, decoders=2) as both:
            both.engine.go.clear()
            held = asyncio.create_task(both.prepare())
            await both.engine.begun()
            both.worker.close()
            assert not both.worker.alive
            both.engine.go.set()
            (token,) = await held
            for call in (both.prepare(), both.run(token)):
                with pytest.raises(InferenceFailed, match=GONE):
                    await call
            await asyncio.to_thread(both.process.join)

    play(scene)


def test_a_thread_ends_with_its_connection() -> None:
    with pair():
        pass  # which sees the threads end


@pytest.mark.parametrize(
    "sent",
    [
        LENGTH.pack(100)[:2],
        LENGTH.pack(100) + b"begun",
    ],
    ids=["a length", "a call"],
)
def test_a_thread_ends_quietly_in_the_midst_of_what_it_reads(sent: bytes) -> None:
    process = Threads(FakeEngine())
    process.connect().sendall(sent)
    process.end()


def test_a_thread_ends_quietly_when_nobody_takes_its_answer() -> None:
    engine = FakeEngine()
    engine.go.clear()
    process = Threads(engine)
    content = pickle.dumps(Call(Prepare(b"a", "single", Bounds(99)), ()))
    connection = process.connect()
    connection.sendall(LENGTH.pack(len(content)) + content)
    connection.close()
    engine.go.set()
    process.end()


# The process's own code, in this process: coverage does not see the other one.


@pytest.fixture(scope="module")
def small(real_store: Store) -> Settings:
    """The real weights, loaded quickly."""
    return Settings(
        model="bvlc_googlenet",
        model_store=real_store.root,
        device="cpu",
        precision="float32",
        max_batch=4,
        cpu_threads=1,
        decode_threads=2,
    )


@contextmanager
def as_before() -> Iterator[None]:
    """Leave what a process sets for itself as it was, and have nobody log yet."""
    asked = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in asked}
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    root.handlers.clear()
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for number, handler in before.items():
            signal.signal(number, handler)
        gc.unfreeze()


def talking(talk: Callable[[Connection, socket.socket], T]) -> T:
    """Run the process's program, with who talks to it in a thread."""
    ours, theirs = socket.socketpair()
    told, news = socket.socketpair()

    def talk_and_hang_up() -> T:
        with ours, Connection(told.detach()) as front:
            return talk(front, ours)

    with ThreadPoolExecutor(1) as thread, theirs, Connection(news.detach()) as connection:
        talked = thread.submit(talk_and_hang_up)
        with as_before():
            process.main(theirs, connection)
        return talked.result(PATIENCE)


def heard(news: Connection) -> Any:
    """Give what the program tells next."""
    assert news.poll(PATIENCE)
    return news.recv()


class Sent(Threads):
    """Stands for a process whose connections are sent to it."""

    def __init__(self, calls: socket.socket) -> None:
        super().__init__(FakeEngine())
        self._calls = calls

    def connect(self) -> socket.socket:
        """Give a connection that the program answers."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._calls, [b"!"], [theirs.fileno()])
        ours.settimeout(0)
        self._sockets.append(ours)
        return ours


def test_it_loads_says_so_and_answers_until_nobody_can_call_it(
    small: Settings, beagle: bytes
) -> None:
    def talk(news: Connection, calls: socket.socket) -> object:
        news.send((small.model_copy(update={"max_batch": 1}), logging.INFO))
        loaded = heard(news)
        process = Sent(calls)
        ours = Worker(cast("_Process", process), loaded, 1)

        async def ask() -> object:
            (token,) = await ours.prepare(beagle, "single", BOUNDS)
            return await ours.executors[0].run(batch_of([token], 1, rows=1))

        try:
            ((probabilities,)) = asyncio.run(ask())
        finally:
            process.end()
        logging.getLogger("of.theirs").debug("too quiet")
        logging.getLogger("of.theirs").info("%d words", 2)
        record = heard(news)
        assert (record.name, record.getMessage()) == ("of.theirs", "2 words")
        assert gc.get_freeze_count() > 0  # what was loaded stays
        return int(np.argmax(probabilities))

    assert talking(talk) == 162


def test_a_model_that_cannot_be_loaded_is_told_and_nothing_is_answered(tmp_path: Path) -> None:
    def talk(news: Connection, _: socket.socket) -> object:
        news.send((Settings(model_store=tmp_path), logging.INFO))
        return heard(news)

    error = talking(talk)
    assert isinstance(error, MissingWeights)
    assert str(error).startswith(f"The weights of 'googlenet' are not in {tmp_path}.")


def test_a_load_that_fails_by_a_bug_is_logged_with_where_it_was_and_told() -> None:
    def talk(news: Connection, _: socket.socket) -> tuple[logging.LogRecord, Exception]:
        news.send((None, logging.INFO))
        return heard(news), heard(news)

    record, error = talking(talk)
    assert (record.name, record.levelname) == ("service.worker.process", "ERROR")
    assert record.getMessage().startswith("loading failed\nTraceback (most recent call last):\n")
    assert type(error) is RuntimeError
    assert str(error) == "AttributeError: 'NoneType' object has no attribute 'model_store'"


def test_it_ends_quietly_when_the_other_has_ended_while_it_loaded(tmp_path: Path) -> None:
    def talk(news: Connection, _: socket.socket) -> None:
        news.send((Settings(model_store=tmp_path), logging.INFO))

    talking(talk)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # a process's end closes all
def test_the_program_heeds_no_signal_is_given_its_connections_and_ends_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, calls = socket.socketpair()
    told, news = socket.socketpair()
    monkeypatch.setattr(sys, "argv", ["worker", str(calls.detach()), str(news.detach())])
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.delitem(sys.modules, "service.worker.process")
    with ours, Connection(told.detach()) as front, as_before():
        front.send((Settings(model_store=tmp_path), logging.INFO))
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("service.worker.process", run_name="__main__")
        for number in (signal.SIGINT, signal.SIGTERM):  # who sends them to both: the other decides
            assert signal.getsignal(number) == signal.SIG_IGN
        assert isinstance(heard(front), MissingWeights)
    assert stop.value.code == 0


# The process.


@dataclass
class Real:
    """A worker, and a way to wait in its one loop."""

    worker: Worker
    wait: Callable[[Coroutine[Any, Any, Any]], Any]

    def prepared(self, image: bytes, plan: str = "single", bounds: Bounds = BOUNDS) -> RemoteHandle:
        """Have an image prepared."""
        (token,) = self.wait(self.worker.prepare(image, plan, bounds))
        return cast("RemoteHandle", token)

    def run(self, batch: Batch[RemoteHandle]) -> list[np.ndarray]:
        """Have a batch run."""

        async def run() -> list[np.ndarray]:
            return [*await self.worker.executors[0].run(batch)]

        return cast("list[np.ndarray]", self.wait(run()))


@pytest.fixture(scope="module")
def real(small: Settings) -> Iterator[Real]:
    """A real worker."""
    with closing_worker(small) as ours, asyncio.Runner() as runner:
        yield Real(ours, runner.run)


@contextmanager
def closing_worker(settings: Settings) -> Iterator[Worker]:
    with contextlib.closing(client.load(settings, Future())) as ours:
        yield ours
    assert not ours.alive


@pytest.fixture(scope="module")
def here(small: Settings) -> Engine:
    """The same engine in this process."""
    return engine.load(small)


@pytest.mark.parametrize("plan", ["single", "ten", "dense"])
def test_its_answers_are_those_of_the_engine(
    plan: str, real: Real, here: Engine, beagle: bytes
) -> None:
    plans = here.ensemble.plans(plan)
    cut, token = here.prepare(beagle, plan, BOUNDS)[0], real.prepared(beagle, plan)
    total = np.zeros(1000)
    rows = len(plans[0].views)
    for start in range(0, rows, 4):
        stop = min(start + 4, rows)
        mine, other = (
            Batch(Key(0, plans[0].side), 4, (Slice(payload, start, stop),), "full")
            for payload in (cut, token)
        )
        (expected,), (answer,) = here.executors[0].run(mine), real.run(other)
        assert answer.dtype == expected.dtype
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)
        total += answer
    (first, *_) = real.worker.ensemble.rank([[total]], plans, 5)
    assert first.label == "beagle"


def test_images_that_share_a_batch_are_not_mixed_up(real: Real, here: Engine, shared: Path) -> None:
    photos = [
        (shared / f"photos/flickr/{name}.jpg").read_bytes()
        for name in ("beagle", "tractor", "koala")
    ]
    mine = here.executors[0].run(
        batch_of([here.prepare(photo, "single", BOUNDS)[0] for photo in photos], 4, rows=1)
    )
    other = real.run(batch_of([real.prepared(photo) for photo in photos], 4, rows=1))
    np.testing.assert_allclose(other, mine, rtol=0, atol=1e-6)
    assert len({int(np.argmax(one)) for one in other}) == 3


def test_it_serves_what_the_engine_does(real: Real, here: Engine) -> None:
    theirs, ours = real.worker.ensemble, here.ensemble
    same = replace(theirs, costs=ours.costs, warmup_seconds=ours.warmup_seconds)
    assert same == ours
    assert {key: curve.sizes for key, curve in theirs.costs.curves.items()} == {
        key: curve.sizes for key, curve in ours.costs.curves.items()
    }
    assert theirs.warmup_seconds > 0
    assert [executor.device for executor in real.worker.executors] == [
        executor.device for executor in here.executors
    ]


@pytest.mark.parametrize(
    ("kind", "nbytes", "max_pixels"),
    [(UnsupportedType, 2, 10**8), (UnreadableImage, 9999, 10**8), (TooLarge, 9999, 1000)],
)
def test_what_is_wrong_with_a_image_is_told_in_the_same_words(  # noqa: PLR0913, PLR0917 - a table
    kind: type[Exception], nbytes: int, max_pixels: int, real: Real, here: Engine, beagle: bytes
) -> None:
    with pytest.raises(kind) as ours:
        here.prepare(beagle[:nbytes], "single", Bounds(max_pixels))
    with pytest.raises(kind) as theirs:
        real.prepared(beagle[:nbytes], bounds=Bounds(max_pixels))
    assert type(theirs.value) is kind
    assert str(theirs.value) == str(ours.value)


def test_more_images_than_it_has_threads_are_all_decoded(real: Real, beagle: bytes) -> None:
    async def all_of_them() -> list[Sequence[RemoteHandle]]:
        return await asyncio.gather(
            *[real.worker.prepare(beagle, "single", BOUNDS) for _ in range(20)]
        )

    tokens = [token for (token,) in real.wait(all_of_them())]
    assert len({token.number for token in tokens}) == 20
    (first, *others) = real.run(batch_of([tokens[0], tokens[9], tokens[19]], 4, rows=1))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_batch_that_fails_is_reported_with_its_traceback_and_the_next_one_is_run(
    real: Real, beagle: bytes
) -> None:
    token = real.prepared(beagle)
    with pytest.raises(RuntimeError) as caught:
        real.run(batch_of([token, token], 1, rows=1))  # more rows than the batch has
    assert str(caught.value).startswith("IndexError: ")
    (note,) = caught.value.__notes__
    assert "batch_assembly.py" in note
    (answer,) = real.run(batch_of([token], 1, rows=1))
    assert np.argmax(answer) == 162


# Loads that fail.


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"model_store": Path("/nowhere")}, {"device": "cuda:7"}, {"model": "absent"}]
)
def test_what_cannot_be_loaded_is_told_in_the_same_words_and_leaves_no_process(
    wrong: dict[str, object], small: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    before = children()
    settings = small.model_copy(update=wrong)
    with pytest.raises(ModelError) as theirs:
        client.load(settings, Future())
    assert children() <= before
    assert caplog.records == []
    with pytest.raises(ModelError) as ours:
        engine.load(settings)
    assert type(theirs.value) is type(ours.value)
    assert str(theirs.value) == str(ours.value)


def test_what_the_process_logs_is_logged_here_under_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = children()
    with pytest.raises(RuntimeError, match=r"^TypeError: "):
        client.load(Settings.model_construct(model_store=5), Future())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("service.worker.process", "ERROR")
    assert "Traceback (most recent call last):" in record.getMessage()
    assert record.process not in {None, os.getpid()}
    assert children() <= before


@pytest.mark.filterwarnings("ignore:Exception in thread news")
@pytest.mark.parametrize("error", [ValueError("not a record to log"), OSError("disk full")])
def test_what_cannot_be_logged_here_leaves_nobody_waiting(error: Exception) -> None:
    def fail(_: logging.LogRecord) -> bool:
        raise error

    before, threads = children(), {*threading.enumerate()}
    log = logging.getLogger("service.worker.process")
    log.addFilter(fail)
    try:
        with pytest.raises(InferenceFailed, match=GONE):
            client.load(Settings.model_construct(model_store=5), Future())
    finally:
        log.removeFilter(fail)
    for thread in {*threading.enumerate()} - threads:
        thread.join(PATIENCE)  # that of the news, whose end is told
    assert children() <= before


@pytest.fixture
def _stillborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started ends at once."""
    monkeypatch.setenv("PYTHONMALLOC", "none")


@pytest.mark.usefixtures("_stillborn")
def test_a_process_that_ends_while_it_loads_is_told_and_not_waited_for(small: Settings) -> None:
    before = children()
    with pytest.raises(InferenceFailed, match=f"^{GONE}$"):
        client.load(small, Future())
    assert children() <= before


def test_that_it_ended_while_it_loaded_is_logged_before_anybody_can_close_it(
    small: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    process = _Process(small)
    closed = threading.Event()

    def close(_: object) -> None:
        process.close()
        closed.set()

    process.loaded.add_done_callback(close)
    os.kill(process.pid, signal.SIGKILL)
    assert closed.wait(PATIENCE)
    assert caplog.messages == [f"{GONE}, with status -9"]


@pytest.mark.usefixtures("_stillborn")
def test_a_process_that_ends_before_it_is_told_what_to_load_is_told_as_well(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.wait(PATIENCE)

    monkeypatch.setattr(subprocess, "Popen", Ended)
    with pytest.raises(InferenceFailed, match=f"^{GONE}$"):
        client.load(small, Future())


def test_a_process_that_ended_after_it_had_loaded_cannot_be_connected_to(small: Settings) -> None:
    process = _Process(small)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(InferenceFailed):
        process.loaded.result(PATIENCE)
    with pytest.raises(InferenceFailed, match=f"^{GONE}$"):
        process.connect()
    process.close()


def test_a_process_that_does_not_end_is_made_to(
    small: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "_CLOSE_SECONDS", 0.1)
    process = _Process(small)
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not even see that it should end
    process.close()
    assert not process.alive
    with pytest.raises(InferenceFailed, match=GONE):
        process.loaded.result(PATIENCE)
    assert caplog.records == []  # it was meant to


# Ends.


def test_a_process_that_is_killed_fails_who_waits(
    small: Settings, beagle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing_worker(small.model_copy(update={"max_batch": 1})) as ours,
        TestClient(create_app(small, load=lambda *_: ours)) as client,
        ThreadPoolExecutor() as threads,
    ):
        wait_ready(client)
        logged = Logged()
        logging.getLogger("service.worker.client").addHandler(logged)
        os.kill(ours.pid, signal.SIGSTOP)
        url = "/classify?views=single"
        waiting = [
            threads.submit(client.post, url, files=files)
            for files in (parts(beagle), parts(beagle, beagle))
        ]
        in_flight = "googlenet_requests_in_flight 3.0\n"
        while in_flight not in client.get("/metrics").text:
            time.sleep(0.01)  # only a scrape can tell
        os.kill(ours.pid, signal.SIGKILL)
        one, two = (answer.result() for answer in waiting)
        assert assert_problem(one, 500, "inference_failed")["detail"] == GONE
        assert two.status_code == 200
        assert [each["error"]["code"] for each in two.json()["results"]] == ["inference_failed"] * 2
        logged.wait()
        assert not ours.alive
        documented = client.get("/openapi.json").json()["paths"]["/classify"]["post"]["responses"]
        assert "500" in documented
    logging.getLogger("service.worker.client").removeHandler(logged)
    told = [
        record.getMessage() for record in caplog.records if record.name == "service.worker.client"
    ]
    assert told == [f"{GONE}, with status -9"]


class Logged(logging.Handler):
    """Waits until something is logged."""

    def __init__(self) -> None:
        super().__init__()
        self._event = threading.Event()

    def emit(self, _: logging.LogRecord) -> None:
        """Wait no longer."""
        self._event.set()

    def wait(self) -> None:
        """Wait."""
        assert self._event.wait(PATIENCE)


@pytest.mark.slow
def test_closing_while_it_computes_ends_it_at_once_and_tells_who_waits(
    small: Settings, beagle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(ours: Worker) -> float:
        (token,) = await ours.prepare(beagle, "single", BOUNDS)
        once = asyncio.Event()

        async def go_on() -> None:
            while True:
                await ours.executors[0].run(batch_of([token], 1, rows=1))
                once.set()

        computing = asyncio.create_task(go_on())
        decoding = [asyncio.create_task(ours.prepare(beagle, "paper", BOUNDS)) for _ in range(9)]
        await once.wait()
        started = time.monotonic()
        ours.close()
        seconds = time.monotonic() - started
        for task in (computing, decoding[-1]):
            with pytest.raises(InferenceFailed, match=GONE):
                await task
        await asyncio.wait(decoding)
        return seconds

    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        assert asyncio.run(scene(ours)) < _CLOSE_SECONDS / 2  # nobody had to kill it
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_sent_to_both_is_the_others_to_heed(
    number: signal.Signals, small: Settings, beagle: bytes
) -> None:
    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        os.kill(ours.pid, number)
        for _ in range(2):
            asyncio.run(ours.prepare(beagle, "single", BOUNDS))
        assert ours.alive


@pytest.mark.slow
def test_closing_leaves_nothing_open(small: Settings) -> None:
    threads, before = [*threading.enumerate()], opened()
    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        assert len(opened() - before) > 2
    for thread in {*threading.enumerate()} - {*threads}:
        thread.join(PATIENCE)  # that of the news
    assert opened() <= before
    assert ours.executors  # it is still there


def opened() -> set[str]:
    """Give what this process has open (on Linux)."""
    gc.collect()
    found = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(str(file.readlink()))
    return found


# Who knows torch.


def test_what_serves_http_knows_no_torch() -> None:
    code = "import sys, service.server.serve; print(*{'torch', 'torchvision'} & {*sys.modules})"
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "\n"
