"""A fake engine, and a worker whose calls are handled by threads of this process."""

import asyncio
import socket
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from conftest import fake_backend

from service.engine.engine import Engine
from service.errors import (
    InferenceFailed,
    UnreadableImage,
)
from service.imaging.crops import CROP
from service.imaging.image_decoder import Bounds
from service.models.store import Store
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Executor, Slice
from service.settings import Settings
from service.worker import main as worker_main
from service.worker.channel import EXITED
from service.worker.child_process import ChildProcess
from service.worker.client import RemoteHandle, WorkerClient
from service.worker.messages import Loaded

BOUNDS = Bounds(10**8)
TIMEOUT = 30.0  # seconds, for what happens at once

T = TypeVar("T")


class Prepared:
    """A prepared image of one member."""

    def __init__(self, name: str) -> None:
        self.name = name


class FakeEngine:
    """Prepares images that are names; a batch's results are the names and rows of its slices."""

    def __init__(self, members: int = 1, executors: int = 1) -> None:
        self.ensemble = fake_backend(members=members).ensemble
        self.executors = tuple(Executor(self._run, number) for number in range(executors))
        self.go = threading.Event()  # lets running decodes finish
        self.go.set()
        self.most = 0  # concurrent decodes
        self._began = threading.Semaphore(0)
        self._made: weakref.WeakSet[Prepared] = weakref.WeakSet()
        self._now = 0
        self._lock = threading.Lock()

    def prepare(self, image: bytes, *how: object, features: bool) -> list[Prepared]:
        """Return a name for each member, or raise the error that the image names."""
        assert (*how, features) == ("single", Bounds(99), 0, False)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._began.release()
        assert self.go.wait(TIMEOUT)
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
        assert await asyncio.to_thread(self._began.acquire, timeout=TIMEOUT)

    @property
    def kept(self) -> list[str]:
        """Prepared images that are not freed."""
        return sorted(prepared.name for prepared in self._made)

    @staticmethod
    def _run(batch: Batch[Prepared]) -> list[tuple[str, int, int]]:
        if batch.size == 13:
            raise ZeroDivisionError("by nought")
        if batch.size == 14:
            raise InferenceFailed("no more memory")
        return [(part.payload.name, part.start, part.stop) for part in batch.slices]


class Threads:
    """A fake `ChildProcess`: threads of this process handle its connections."""

    pid = 0
    alive = True

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.ended: Future[None] = Future()
        self._handler = worker_main.Handler(cast("Engine", engine))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        """Open a connection to a new thread."""
        ours, theirs = socket.socketpair()
        self._threads.append(threading.Thread(target=self._handler.serve, args=[theirs]))
        self._threads[-1].start()
        ours.settimeout(0)
        self._sockets.append(ours)
        return ours

    def close(self) -> None:
        """Exit without waiting for the threads."""
        self.alive = False

    def end(self) -> None:
        """Close all connections and wait for the threads."""
        for connection in self._sockets:
            connection.close()
        self.join()

    def join(self) -> None:
        """Wait until every thread has ended."""
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


class Silent(Threads):
    """A fake process that never responds."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.theirs: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """Open a connection without a handler."""
        if not self.alive:
            raise InferenceFailed(EXITED)
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        self._sockets.append(ours)
        self.theirs.append(theirs)
        return ours

    def disconnect(self) -> None:
        """Exit, as seen by the client."""
        self.alive = False
        for connection in self.theirs:
            connection.close()

    def end(self) -> None:
        """Close both ends."""
        self.disconnect()
        super().end()


@dataclass
class Pair:
    """Both ends."""

    worker: WorkerClient
    engine: FakeEngine
    process: Threads

    async def prepare(self, name: str = "a") -> Sequence[RemoteHandle]:
        """Prepare an image."""
        await asyncio.sleep(0)  # the loop holds what it last gave for as long as a task goes on
        return await self.worker.prepare(name.encode(), "single", Bounds(99))

    async def run(
        self, *handles: RemoteHandle, size: int = 8, member: int = 0, executor: int = 0
    ) -> object:
        """Run a batch of two rows of each image on an executor."""
        await asyncio.sleep(0)
        results: object = await self.worker.executors[executor].run(batch_of(handles, size, member))
        return results


@contextmanager
def pair(process: Threads | None = None, *, decoders: int = 2, **shape: int) -> Iterator[Pair]:
    process = process or Threads(FakeEngine(**shape))
    engine = process.engine
    loaded = Loaded(engine.ensemble, tuple(executor.device for executor in engine.executors))
    try:
        ours = WorkerClient(cast("ChildProcess", process), loaded, decoders)
        yield Pair(ours, engine, process)
    finally:
        engine.go.set()
        process.end()


def batch_of(payloads: Sequence[T], size: int, member: int = 0, rows: int = 2) -> Batch[T]:
    slices = tuple(Slice(payload, 0, rows) for payload in payloads)
    return Batch(Key(member, CROP), size, slices, "full")


def small_settings(real_store: Store) -> Settings:
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
