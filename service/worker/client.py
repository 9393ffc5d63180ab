"""The engine in a process of its own, seen from the one that serves HTTP.

Python runs one thread of a process at a time, so decoding, computing and HTTP in one process wait
for each other. Here a call goes to the worker (`service.worker.process`), and only bytes and labels
come near HTTP.

Every lane and every decoding thread over there has a connection of its own, so a lane's batches
are always computed by the same thread. What was decoded stays there; here there is a token for
it, and when nobody holds that any more, the worker forgets it, too. The worker ends with this
process, however that ends: its connections break.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from service import cpu_info, python_process
from service.errors import InferenceFailed
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Result
from service.scheduling.admission import Decoders
from service.scheduling.types import Batch, Executor, Slice
from service.settings import Settings
from service.worker.messages import LENGTH, Call, Loaded, Paint, Prepare, Request, Run

logger = logging.getLogger(__name__)

T = TypeVar("T")


_GONE = "the process that classifies has ended"
_BROKEN = "what was to do this there has ended; try again"
_CLOSE_SECONDS = 5.0
_CHUNK = 65536  # bytes read at once


class RemoteHandle:
    """Stands for what an image brought; when it ends, `forget` learns its number."""

    __slots__ = ("_forget", "number")

    def __init__(self, number: int, forget: "deque[int]") -> None:
        self.number = number
        self._forget = forget

    def __del__(self) -> None:
        self._forget.append(self.number)


def load(settings: Settings, cancelled: Future[None]) -> "Worker":
    """Start a worker and wait until it has loaded: blocking, seconds long.

    Raises what `service.engine.engine.load` does, or `InferenceFailed` if the worker ends before
    that, as it does when `cancelled` is done.
    """
    process = _Process(settings)
    cancelled.add_done_callback(lambda _: process.kill())
    try:
        return Worker(process, process.loaded.result(), settings.decode_threads)
    except BaseException:
        process.close()
        raise


class _Process:
    """A started worker: what it logs is logged here, and whether it has loaded."""

    def __init__(self, settings: Settings) -> None:
        self.loaded: Future[Loaded] = Future()
        self.ended: Future[None] = Future()
        with contextlib.ExitStack() as opened:
            # `calls` brings it connections; over `news` it tells what happens.
            self._calls, calls = map(opened.enter_context, socket.socketpair())
            ours, news = map(opened.enter_context, socket.socketpair())
            inherited = [calls.fileno(), news.fileno()]
            command = python_process.command("service.worker.process", *map(str, inherited))
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                env=python_process.environment(),
                pass_fds=inherited,
                process_group=0,  # a terminal's Ctrl-C is for this process; that one goes with it
            )
            calls.close()
            news.close()
            opened.pop_all()
        self._news = Connection(ours.detach())
        with contextlib.suppress(OSError):  # it has ended; the thread that listens will notice
            self._news.send((settings, logging.getLogger().getEffectiveLevel()))
        self._ending = False
        threading.Thread(target=self._listen, name="news", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def connect(self) -> socket.socket:
        """Give a connection that a thread of the worker answers; `InferenceFailed` without one."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._calls, [b"!"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise InferenceFailed(_GONE) from None
        ours.settimeout(0)
        return ours

    def kill(self) -> None:
        """End it at once, and what it has started, unless it has ended."""
        self._ending = True
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._ending = True
        self._calls.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _listen(self) -> None:
        try:
            with self._news:
                for news in self._received():
                    self._hear(news)
            if not self._ending:
                logger.error("%s, with status %d", _GONE, self._process.wait())
        finally:  # also when what logs fails: somebody waits
            if not self.loaded.done():
                self.loaded.set_exception(InferenceFailed(_GONE))
            if self.ended.set_running_or_notify_cancel():
                self.ended.set_result(None)

    def _received(self) -> Iterator[logging.LogRecord | Loaded | Exception]:
        with contextlib.suppress(EOFError, OSError):
            while True:
                yield self._news.recv()

    def _hear(self, news: logging.LogRecord | Loaded | Exception) -> None:
        if isinstance(news, logging.LogRecord):
            logging.getLogger(news.name).handle(news)
        elif isinstance(news, Exception):
            self._ending = True
            self.loaded.set_exception(news)
        else:
            self.loaded.set_result(news)


class Worker:
    """A `Backend` in another process; its coroutines are for one event loop."""

    def __init__(self, process: _Process, loaded: Loaded, decoders: int) -> None:
        computing = [_Channel(process.connect) for _ in loaded.executors]
        decoding = [_Channel(process.connect) for _ in range(cpu_info.decoding(decoders))]
        self.ensemble = loaded.ensemble
        self.executors = tuple(
            Executor(partial(self._run, line, number), device)
            for number, (line, device) in enumerate(zip(computing, loaded.executors, strict=True))
        )
        self._process = process
        self._lines = [*computing, *decoding]
        self._idle: asyncio.Queue[_Channel] = asyncio.Queue()
        for line in decoding:
            self._idle.put_nowait(line)
        self._decoders = Decoders(len(decoding))
        self._waiting = 0  # images, for a thread
        self._forget: deque[int] = deque()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Does it run."""
        return self._process.alive

    async def ended(self) -> None:
        """Wait until it has ended, for whatever reason; for one caller.

        A caller that is cancelled leaves no callback: its event loop may be closed by then.
        """
        await asyncio.wrap_future(self._process.ended)

    @property
    def stalled(self) -> float:
        """Seconds since the oldest call was made that has no answer yet; 0 without any."""
        now = time.monotonic()
        return max((now - line.asked for line in self._lines if line.asked), default=0.0)

    def close(self) -> None:
        """End it: it does so when nobody can call it any more, or is made to."""
        self._process.close()
        for line in self._lines:
            line.close()

    def decode_wait(self, images: int) -> float:
        """Predict for how many seconds the last of so many more images waits for a thread."""
        at_work = self._decoders.threads - self._idle.qsize()
        return self._decoders.decode_wait(at_work + self._waiting + images)

    async def prepare(
        self, image: ImageInput, views: str, bounds: Bounds, target: int = 0
    ) -> Sequence[RemoteHandle]:
        """Decode an image; whoever is cancelled leaves the thread to end what it has begun."""

        def tokens(answer: tuple[int, int]) -> Sequence[RemoteHandle]:
            number, members = answer
            return [RemoteHandle(number, self._forget)] * members

        return await self._decoded(Prepare(image, views, bounds, target), tokens)

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Decode an image, and draw over it."""
        return await self._decoded(Paint(image, heat, bounds), bytes)

    async def _decoded(self, wish: Prepare | Paint, made: Callable[[Any], T]) -> T:
        self._waiting += 1
        try:
            line = await self._idle.get()
        finally:
            self._waiting -= 1
        answer = await asyncio.shield(asyncio.create_task(self._decode(line, wish, made)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _decode(
        self, line: "_Channel", wish: Prepare | Paint, made: Callable[[Any], T]
    ) -> T | Exception:
        """Give the error: raised, it would be reported as nobody's when the caller has left."""
        begun = time.monotonic()
        try:
            answer = await self._ask(line, wish)
        finally:
            self._idle.put_nowait(line)
        if isinstance(answer, Exception):
            return answer
        if isinstance(wish, Prepare):  # which is what is predicted
            self._decoders = self._decoders.observed(time.monotonic() - begun)
        return made(answer)  # here, for what nobody waits for any more has to be forgotten

    async def _run(
        self, line: "_Channel", number: int, batch: Batch[RemoteHandle]
    ) -> Sequence[Result]:
        slices = tuple(Slice(part.payload.number, part.start, part.stop) for part in batch.slices)
        numbered = Batch(batch.key, batch.size, slices, batch.reason)
        answer: Sequence[Result] | Exception = await self._ask(line, Run(number, numbered))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _ask(self, line: "_Channel", wish: Request) -> Any:
        forget = tuple(self._forget.popleft() for _ in range(len(self._forget)))
        try:
            return await line.ask(Call(wish, forget))
        except InferenceFailed as error:
            return error


class _Channel:
    """A connection to a thread of the worker, for one call at a time."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._connection = connect()
        self._closing = False
        self.asked: float | None = None  # since when an answer is awaited, by time.monotonic()

    def close(self) -> None:
        """Hang up, when the call that waits on it, if any, has ended."""
        self._closing = True
        if self.asked is None:
            self._connection.close()

    async def ask(self, call: Call) -> object:
        """Give the answer; raises `InferenceFailed` when there is nobody to give it.

        If a thread has ended and the process has not, another one answers from then on.
        """
        if self._closing:
            raise InferenceFailed(_GONE)
        self.asked = time.monotonic()
        try:
            return await self._ask(call)
        except (EOFError, OSError) as error:
            self._connection.close()
            self._connection = self._connect()
            raise InferenceFailed(_BROKEN) from error
        finally:
            self.asked = None
            if self._closing:
                self._connection.close()

    async def _ask(self, call: Call) -> object:
        content = pickle.dumps(call)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, LENGTH.pack(len(content)) + content)
        received = bytearray()
        while not _is_whole(received):
            chunk = await loop.sock_recv(self._connection, _CHUNK)
            if not chunk:
                raise EOFError
            received += chunk
        return pickle.loads(memoryview(received)[LENGTH.size :])  # noqa: S301 - our own process


def _is_whole(received: bytearray) -> bool:
    if len(received) < LENGTH.size:
        return False
    (length,) = LENGTH.unpack_from(received)
    return len(received) == LENGTH.size + int(length)
