"""The worker process: its main function, and the handler of calls from `service.worker.client`."""

import contextlib
import gc
import itertools
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

from service.engine import engine
from service.engine.engine import Engine
from service.engine.prepared_image import PreparedImage
from service.errors import ServiceError
from service.imaging import heatmap
from service.scheduling.types import Batch, Slice
from service.worker.messages import (
    LENGTH,
    Call,
    Loaded,
    Paint,
    Prepare,
    Request,
    Run,
    framed,
    reported,
)

logger = logging.getLogger("service.worker.main")  # `__name__` is "__main__" here


class ParentChannel(QueueHandler):
    """Sends log records and the result of loading to the serving process."""

    def __init__(self, events: Connection) -> None:
        super().__init__(events)  # type: ignore[arg-type]  # only `enqueue` uses it
        self._events = events

    def enqueue(self, record: Any) -> None:
        """Send a record, an error or `Loaded`, under the lock; ignore a closed connection."""
        self.acquire()
        try:
            with contextlib.suppress(OSError):
                self._events.send(record)
        finally:
            self.release()


class Handler:
    """Handles calls with an engine; keeps prepared images until the client frees them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images: dict[int, Sequence[PreparedImage]] = {}
        self._numbers = itertools.count()

    def serve(self, connection: socket.socket) -> None:
        """Handle the calls of one connection until it breaks."""
        with connection, connection.makefile("rb") as reader:
            try:
                while content := _read(reader):
                    connection.sendall(framed(self._handle(pickle.loads(content))))  # noqa: S301 - our own process
            except OSError:
                pass  # the client has closed it
            except Exception:  # the connection closes, so the client gets an error
                logger.exception("worker thread failed, closing its connection")

    def _handle(self, call: Call) -> object:
        for number in call.forget:
            del self._images[number]
        try:
            return self._result(call.request)
        except ServiceError as error:
            return error
        except Exception as error:  # noqa: BLE001 - any error goes to the client
            return reported(error)

    def _result(self, request: Request) -> object:
        if isinstance(request, Run):
            return self._run(request)
        if isinstance(request, Paint):
            return heatmap.paint(request.image, request.heat, request.bounds)
        return self._prepare(request)

    def _prepare(self, request: Prepare) -> tuple[int, int]:
        images = self._engine.prepare(
            request.image,
            request.views,
            request.bounds,
            request.target,
            features=request.features,
        )
        number = next(self._numbers)
        self._images[number] = images
        return number, len(images)

    def _run(self, request: Run) -> Sequence[object]:
        batch, member = request.batch, request.batch.key.member
        slices = tuple(
            Slice(self._images[part.payload][member], part.start, part.stop)
            for part in batch.slices
        )
        executor = self._engine.executors[request.executor]
        return executor.run(Batch(batch.key, batch.size, slices, batch.reason))


def _read(reader: BinaryIO) -> bytes | None:
    """Read one call; None if the connection ends before it is complete."""
    head = reader.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = reader.read(length)
    return content if len(content) == length else None


def main(connections: socket.socket, events: Connection) -> None:
    """Load the models, then serve the connections that arrive until the client has exited."""
    try:
        settings, level = events.recv()
    except EOFError:  # the serving process was killed before it sent them
        return
    parent = ParentChannel(events)
    logging.basicConfig(level=level, format="%(message)s", handlers=[parent])
    logging.getLogger("PIL").setLevel(logging.INFO)  # its debug level logs what images contain
    try:
        loaded = engine.load(settings)
    except ServiceError as error:
        parent.enqueue(error)
        return
    except Exception as error:
        logger.exception("loading failed")
        parent.enqueue(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    executors = tuple(executor.device for executor in loaded.executors)
    gc.collect()  # slow, so before readiness
    gc.freeze()  # the models stay; later collections skip them
    parent.enqueue(Loaded(loaded.ensemble, executors))
    handler = Handler(loaded)
    while files := socket.recv_fds(connections, 1, 1)[1]:
        connection = socket.socket(fileno=files[0])
        threading.Thread(target=handler.serve, args=[connection], daemon=True).start()


if __name__ == "__main__":
    # A supervisor may signal both processes; the serving one decides, and this one exits with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connections_file, events_file = map(int, sys.argv[1:])
    main(socket.socket(fileno=connections_file), Connection(events_file))
    os._exit(0)  # without waiting for a running batch
