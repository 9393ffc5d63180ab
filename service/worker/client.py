"""The client for the worker process: the serving process's end.

Python runs one thread of a process at a time, so decoding, computing and HTTP in one process wait
for each other. Calls go to the worker (`service.worker.main`) instead; only bytes and labels
come near HTTP.

Each executor and each decoding thread of the worker has a channel of its own, so an executor's
batches always run in the same thread. Prepared images stay in the worker; the client holds handles,
and the worker frees an image once its handles are gone. The worker exits with this process, however
that ends: its connections break.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from service import cpu_info
from service.errors import InferenceFailed, Interrupted
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Result
from service.scheduling.admission import Decoders
from service.scheduling.types import Batch, Executor, Slice
from service.settings import Settings
from service.worker.channel import Channel
from service.worker.child_process import ChildProcess
from service.worker.messages import Call, Loaded, Paint, Prepare, Request, Run

T = TypeVar("T")


class RemoteHandle:
    """Handle to a prepared image in the worker; its end puts the number into `forget`."""

    __slots__ = ("_forget", "number")

    def __init__(self, number: int, forget: deque[int]) -> None:
        self.number = number
        self._forget = forget

    def __del__(self) -> None:
        self._forget.append(self.number)


def load(settings: Settings, cancelled: Future[None]) -> "WorkerClient":
    """Start a worker and wait until it has loaded: blocking, takes seconds.

    Raises what `service.engine.engine.load` does, or `InferenceFailed` if the worker exits before
    that, as it does when `cancelled` is done.
    """
    process = ChildProcess(settings)
    cancelled.add_done_callback(lambda _: process.kill())
    try:
        return WorkerClient(process, process.loaded.result(), settings.decode_threads)
    except BaseException:
        process.close()
        raise


class WorkerClient:
    """A `Backend` in another process; its coroutines are for one event loop."""

    def __init__(self, process: ChildProcess, loaded: Loaded, decoders: int) -> None:
        computing = [Channel(process.connect) for _ in loaded.executors]
        decoding = [Channel(process.connect) for _ in range(cpu_info.decoding(decoders))]
        self.ensemble = loaded.ensemble
        self.executors = tuple(
            Executor(partial(self._run, channel, number), device)
            for number, (channel, device) in enumerate(
                zip(computing, loaded.executors, strict=True)
            )
        )
        self._process = process
        self._channels = [*computing, *decoding]
        self._idle: asyncio.Queue[Channel] = asyncio.Queue()
        for channel in decoding:
            self._idle.put_nowait(channel)
        self._decoders = Decoders(len(decoding))
        self._waiting = 0  # images that wait for a decoding thread
        self._forget: deque[int] = deque()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._process.alive

    async def ended(self) -> None:
        """Wait until the worker has exited, for whatever reason; for one task.

        A cancelled task leaves no callback: its event loop may be closed by then.
        """
        await asyncio.wrap_future(self._process.ended)

    @property
    def stalled(self) -> float:
        """Age of the oldest call in flight in seconds; 0 if there is none."""
        now = time.monotonic()
        busy = [channel.busy_since for channel in self._channels if channel.busy_since]
        return now - min(busy, default=now)

    def close(self) -> None:
        """End the worker; it is killed if it does not exit."""
        self._process.close()
        for channel in self._channels:
            channel.close()

    def decode_wait(self, images: int) -> float:
        """Predict the seconds until the last of `images` more gets a decoding thread."""
        busy = self._decoders.threads - self._idle.qsize()
        return self._decoders.decode_wait(busy + self._waiting + images)

    async def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> Sequence[RemoteHandle]:
        """Decode an image; a cancelled request leaves the worker thread to finish."""

        def handles(response: tuple[int, int]) -> Sequence[RemoteHandle]:
            number, members = response
            return [RemoteHandle(number, self._forget)] * members

        return await self._decoded(Prepare(image, views, bounds, target, features), handles)

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Decode an image and draw a heat map over it; the response is a PNG file."""
        return await self._decoded(Paint(image, heat, bounds), bytes)

    async def _decoded(self, request: Prepare | Paint, parse: Callable[[Any], T]) -> T:
        self._waiting += 1
        try:
            channel = await self._idle.get()
        finally:
            self._waiting -= 1
        result = await asyncio.shield(asyncio.create_task(self._decode(channel, request, parse)))
        if isinstance(result, Exception):
            raise result
        return result

    async def _decode(
        self, channel: Channel, request: Prepare | Paint, parse: Callable[[Any], T]
    ) -> T | Exception:
        """Return errors: one raised after a cancellation would be logged as never retrieved."""
        started = time.monotonic()
        try:
            response = await self._call(channel, request)
        finally:
            self._idle.put_nowait(channel)
        if isinstance(response, Exception):
            return response
        if isinstance(request, Prepare):  # `decode_wait` predicts these only
            self._decoders = self._decoders.observed(time.monotonic() - started)
        return parse(response)  # in this task: it frees the image if the request was cancelled

    async def _run(
        self, channel: Channel, number: int, batch: Batch[RemoteHandle]
    ) -> Sequence[Result]:
        slices = tuple(Slice(part.payload.number, part.start, part.stop) for part in batch.slices)
        request = Run(number, Batch(batch.key, batch.size, slices, batch.reason))
        response: Sequence[Result] | Exception = await self._call(channel, request)
        if isinstance(response, Exception):
            raise response
        return response

    async def _call(self, channel: Channel, request: Request) -> Any:
        forget = tuple(self._forget.popleft() for _ in range(len(self._forget)))
        try:
            return await channel.call(Call(request, forget))
        except InferenceFailed as error:
            # An image that was being decoded may be why the worker ended, and if it were sent
            # again and again, the worker would be restarted too often; no other request is.
            return Interrupted(str(error)) if isinstance(request, Run) else error
