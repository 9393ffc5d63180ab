"""The worker's main function, run in this process, where coverage sees it."""

import asyncio
import gc
import logging
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from fake_worker import (
    BOUNDS,
    TIMEOUT,
    FakeEngine,
    Threads,
    batch_of,
    small_settings,
)

from service.errors import (
    MissingWeights,
)
from service.models.store import Store
from service.settings import Settings
from service.worker import main as worker_main
from service.worker.child_process import ChildProcess
from service.worker.client import WorkerClient

T = TypeVar("T")


@pytest.fixture(scope="module")
def small(real_store: Store) -> Settings:
    """Settings that load the real weights quickly."""
    return small_settings(real_store)


@contextmanager
def as_before() -> Iterator[None]:
    """Restore signal handlers and logging; start without log handlers."""
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
    """Run the process's program, with the client end in a thread."""
    ours, theirs = socket.socketpair()
    parent, events = socket.socketpair()

    def talk_and_close() -> T:
        with ours, Connection(parent.detach()) as front:
            return talk(front, ours)

    with ThreadPoolExecutor(1) as thread, theirs, Connection(events.detach()) as connection:
        talked = thread.submit(talk_and_close)
        with as_before():
            worker_main.main(theirs, connection)
        return talked.result(TIMEOUT)


def next_event(events: Connection) -> Any:
    """Receive the program's next event."""
    assert events.poll(TIMEOUT)
    return events.recv()


class Sent(Threads):
    """A fake process whose connections are passed to the program."""

    def __init__(self, calls: socket.socket) -> None:
        super().__init__(FakeEngine())
        self._calls = calls

    def connect(self) -> socket.socket:
        """Open a connection to the program."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._calls, [b"!"], [theirs.fileno()])
        ours.settimeout(0)
        self._sockets.append(ours)
        return ours


def test_main_ends_with_a_server_that_sends_nothing() -> None:
    talking(lambda *_: None)


def test_main_loads_reports_readiness_and_handles_calls(small: Settings, beagle: bytes) -> None:
    def talk(events: Connection, calls: socket.socket) -> object:
        events.send((small.model_copy(update={"max_batch": 1}), logging.INFO))
        loaded = next_event(events)
        process = Sent(calls)
        ours = WorkerClient(cast("ChildProcess", process), loaded, 1)

        async def ask() -> object:
            (handle,) = await ours.prepare(beagle, "single", BOUNDS)
            return await ours.executors[0].run(batch_of([handle], 1, rows=1))

        try:
            ((probabilities,)) = asyncio.run(ask())
        finally:
            process.end()
        logging.getLogger("of.theirs").debug("too quiet")
        logging.getLogger("of.theirs").info("%d words", 2)
        record = next_event(events)
        assert (record.name, record.getMessage()) == ("of.theirs", "2 words")
        assert gc.get_freeze_count() > 0  # what was loaded stays
        return int(np.argmax(probabilities))

    assert talking(talk) == 162


def test_main_reports_a_load_error(tmp_path: Path) -> None:
    def talk(events: Connection, _: socket.socket) -> object:
        events.send((Settings(model_store=tmp_path), logging.INFO))
        return next_event(events)

    error = talking(talk)
    assert isinstance(error, MissingWeights)
    assert str(error).startswith(f"The weights of 'googlenet' are not in {tmp_path}.")


def test_main_logs_and_reports_an_unexpected_load_error() -> None:
    def talk(events: Connection, _: socket.socket) -> tuple[logging.LogRecord, Exception]:
        events.send((None, logging.INFO))
        return next_event(events), next_event(events)

    record, error = talking(talk)
    assert (record.name, record.levelname) == ("service.worker.main", "ERROR")
    assert record.getMessage().startswith("loading failed\nTraceback (most recent call last):\n")
    assert type(error) is RuntimeError
    assert str(error) == "AttributeError: 'NoneType' object has no attribute 'model_store'"


def test_main_ends_quietly_if_the_client_exits_during_loading(tmp_path: Path) -> None:
    def talk(events: Connection, _: socket.socket) -> None:
        events.send((Settings(model_store=tmp_path), logging.INFO))

    talking(talk)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # a process's end closes all
def test_program_ignores_signals_and_exits_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, calls = socket.socketpair()
    parent, events = socket.socketpair()
    monkeypatch.setattr(sys, "argv", ["worker", str(calls.detach()), str(events.detach())])
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.delitem(sys.modules, "service.worker.main")
    with ours, Connection(parent.detach()) as front, as_before():
        front.send((Settings(model_store=tmp_path), logging.INFO))
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("service.worker.main", run_name="__main__")
        for number in (signal.SIGINT, signal.SIGTERM):  # who sends them to both: the other decides
            assert signal.getsignal(number) == signal.SIG_IGN
        assert isinstance(next_event(front), MissingWeights)
    assert stop.value.code == 0
