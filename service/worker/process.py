"""The process that decodes and computes for the one that serves HTTP (`service.worker.client`)."""

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
import traceback
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
from service.worker.messages import LENGTH, Call, Loaded, Paint, Prepare, Request, Run

logger = logging.getLogger("service.worker.process")  # a program's own name is another


class ParentChannel(QueueHandler):
    """Sends what happens here to the other process: log records, above all."""

    def __init__(self, news: Connection) -> None:
        super().__init__(news)  # type: ignore[arg-type]  # only `enqueue` uses it
        self._news = news

    def enqueue(self, record: Any) -> None:
        """Send anything, if somebody listens; the handler's lock keeps the messages apart."""
        self.acquire()
        try:
            with contextlib.suppress(OSError):
                self._news.send(record)
        finally:
            self.release()


class Handler:
    """Answers calls with an engine; keeps what was prepared until it is forgotten."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[int, Sequence[PreparedImage]] = {}
        self._numbers = itertools.count()

    def serve(self, connection: socket.socket) -> None:
        """Answer the calls of one connection until it breaks."""
        with connection, connection.makefile("rb") as line:
            try:
                while content := _read(line):
                    answer = pickle.dumps(self._answer(pickle.loads(content)))  # noqa: S301 - ours
                    connection.sendall(LENGTH.pack(len(answer)) + answer)
            except OSError:
                pass  # nobody is there any more
            except Exception:
                logger.exception("a thread ends")  # and its connection, so the caller learns of it

    def _answer(self, call: Call) -> object:
        for number in call.forget:
            del self._kept[number]
        try:
            return self._do(call.wish)
        except ServiceError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            told = RuntimeError(f"{type(error).__name__}: {error}")
            told.add_note(traceback.format_exc())  # which the way there would lose
            return told

    def _do(self, wish: Request) -> object:
        if isinstance(wish, Run):
            return self._run(wish)
        if isinstance(wish, Paint):
            return heatmap.paint(wish.image, wish.heat, wish.bounds)
        return self._prepare(wish)

    def _prepare(self, wish: Prepare) -> tuple[int, int]:
        cuts = self._engine.prepare(wish.image, wish.views, wish.bounds, wish.target)
        number = next(self._numbers)
        self._kept[number] = cuts
        return number, len(cuts)

    def _run(self, wish: Run) -> Sequence[object]:
        batch, member = wish.batch, wish.batch.key.member
        slices = tuple(
            Slice(self._kept[part.payload][member], part.start, part.stop) for part in batch.slices
        )
        executor = self._engine.executors[wish.executor]
        return executor.run(Batch(batch.key, batch.size, slices, batch.reason))


def _read(line: BinaryIO) -> bytes | None:
    """Read a call, unless the connection ends before it is whole."""
    head = line.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = line.read(length)
    return content if len(content) == length else None


def main(calls: socket.socket, news: Connection) -> None:
    """Load what the settings say, then answer calls until nobody can make any more."""
    settings, level = news.recv()
    tell = ParentChannel(news)
    logging.basicConfig(level=level, format="%(message)s", handlers=[tell])
    logging.getLogger("PIL").setLevel(logging.INFO)  # below that it tells what images hold
    try:
        loaded = engine.load(settings)
    except ServiceError as error:
        tell.enqueue(error)
        return
    except Exception as error:
        logger.exception("loading failed")
        tell.enqueue(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    executors = tuple(executor.device for executor in loaded.executors)
    gc.collect()  # which takes a while: before it says that it is ready
    gc.freeze()  # what is there stays there, and need not be looked through again and again
    tell.enqueue(Loaded(loaded.ensemble, executors))
    answers = Handler(loaded)
    while files := socket.recv_fds(calls, 1, 1)[1]:
        connection = socket.socket(fileno=files[0])
        threading.Thread(target=answers.serve, args=[connection], daemon=True).start()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a supervisor may send it to both processes;
        signal.signal(number, signal.SIG_IGN)  # the other decides, and this one ends with it
    calls_file, news_file = map(int, sys.argv[1:])
    main(socket.socket(fileno=calls_file), Connection(news_file))
    os._exit(0)  # without waiting for a batch that nobody wants
