"""The worker's operating-system process: started, connected to, watched and ended."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection

from service import python_process
from service.errors import InferenceFailed
from service.settings import Settings
from service.worker.channel import EXITED
from service.worker.messages import Loaded

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # before a process that was asked to exit is killed


class ChildProcess:
    """A started worker process; its log records are handled in this process."""

    def __init__(self, settings: Settings) -> None:
        self.loaded: Future[Loaded] = Future()
        self.ended: Future[None] = Future()
        with contextlib.ExitStack() as opened:
            # `connections` passes sockets to the worker; `events` carries what it reports.
            self._connections, connections = map(opened.enter_context, socket.socketpair())
            parent_events, events = map(opened.enter_context, socket.socketpair())
            inherited = [connections.fileno(), events.fileno()]
            command = python_process.command("service.worker.main", *map(str, inherited))
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                env=python_process.environment(),
                pass_fds=inherited,
                process_group=0,  # so that a terminal's Ctrl-C reaches only the serving process
            )
            connections.close()
            events.close()
            opened.pop_all()
        self._events = Connection(parent_events.detach())
        with contextlib.suppress(OSError):  # it has exited; the listening thread reports that
            self._events.send((settings, logging.getLogger().getEffectiveLevel()))
        self._ending = False
        threading.Thread(target=self._listen, name="worker-events", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def connect(self) -> socket.socket:
        """Open a connection to a new worker thread; raises `InferenceFailed` if it has exited."""
        local, remote = socket.socketpair()
        with remote:
            try:
                socket.send_fds(self._connections, [b"!"], [remote.fileno()])
            except OSError:
                local.close()
                raise InferenceFailed(EXITED) from None
        local.settimeout(0)
        return local

    def kill(self) -> None:
        """Kill the process and its children, unless it has exited."""
        self._ending = True
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process exit, and kill it after `CLOSE_SECONDS`."""
        self._ending = True
        self._connections.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _listen(self) -> None:
        try:
            with self._events:
                for event in self._received():
                    self._handle(event)
            if not self._ending:
                logger.error("%s, with status %d", EXITED, self._process.wait())
        finally:  # also when a log handler fails: callers wait for these futures
            if not self.loaded.done():
                self.loaded.set_exception(InferenceFailed(EXITED))
            if self.ended.set_running_or_notify_cancel():
                self.ended.set_result(None)

    def _received(self) -> Iterator[logging.LogRecord | Loaded | Exception]:
        with contextlib.suppress(EOFError, OSError):
            while True:
                yield self._events.recv()

    def _handle(self, event: logging.LogRecord | Loaded | Exception) -> None:
        if isinstance(event, logging.LogRecord):
            logging.getLogger(event.name).handle(event)
        elif isinstance(event, Exception):
            self._ending = True
            self.loaded.set_exception(event)
        else:
            self.loaded.set_result(event)
