"""The supervisor: starts the core process and the API processes, connects and replaces them.

The listening sockets are the supervisor's, so that connections that wait for a process which has
ended are accepted by the one that replaces it. On SIGTERM the API processes drain and exit, then
the core does.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from service import python_process
from service.server import child_settings, listeners
from service.server.child_settings import ChildSettings
from service.server.listeners import Listeners
from service.serving.restart_policy import Restarts
from service.settings import Settings

logger = logging.getLogger(__name__)

_END_SECONDS = 10.0  # for the core to end its workers, before it is killed
_FIRST_DELAY = 0.1  # seconds before the first restart of a process


def run(settings: Settings) -> int:
    """Serve in several processes until signalled; returns the exit status."""
    with listeners.shared(settings) as sockets:
        return asyncio.run(_Supervisor(settings, sockets).run())


@dataclass(frozen=True, slots=True)
class _Child:
    """A process, and the socket on which it gets its settings and connections."""

    process: Process
    control: socket.socket


class _Supervisor:
    def __init__(self, settings: Settings, sockets: Sequence[Listeners]) -> None:
        self._settings, self._sockets = settings, sockets
        self._port: int = sockets[0].http.getsockname()[1]
        self._core: _Child | None = None
        self._apis: dict[int, _Child] = {}  # by number
        self._stopping = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Keep all processes running until one of them or a signal ends that."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._refresh)
        core = asyncio.create_task(self._keep("core", self._start_core))
        apis = [
            asyncio.create_task(
                self._keep(f"API process {number}", partial(self._start_api, number))
            )
            for number in range(len(self._sockets))
        ]
        await self._stopping.wait()
        for child in self._apis.values():
            _signal(child, signal.SIGTERM)
        await asyncio.gather(*apis)
        if self._core:
            self._core.control.close()
            await asyncio.wait([core], timeout=_END_SECONDS)
            _signal(self._core, signal.SIGKILL)
        await core
        return self._status

    async def _keep(self, name: str, start: Callable[[], Awaitable[_Child]]) -> None:
        """Start a process, again whenever it ends by itself, until the service stops."""
        restarts = Restarts(_FIRST_DELAY)
        while not self._stopping.is_set():
            child = await start()
            if self._stopping.is_set():  # meanwhile
                _signal(child, signal.SIGKILL)
            status = await child.process.wait()
            child.control.close()
            if self._stopping.is_set():
                return
            restarts = restarts.ended(time.monotonic())
            if status > 0 or restarts.are_too_many:  # it decided so, or restarts do not help
                logger.error("the %s has ended, with status %d; stopping", name, status)
                self._stop(max(status, 1))
                return
            logger.error("the %s has ended; restarting it in %g s", name, restarts.delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), restarts.delay)

    async def _start_core(self) -> _Child:
        self._core = await _start("core_process", ChildSettings(self._settings, self._port))
        for api in self._apis.values():
            _connect(api, self._core)
        return self._core

    async def _start_api(self, number: int) -> _Child:
        listening = self._sockets[number]
        files = [it.fileno() for it in (listening.http, listening.probes) if it]
        settings = child_settings.share_of(self._settings)
        child = await _start("api_process", ChildSettings(settings, self._port, *files), files)
        self._apis[number] = child
        if self._core:
            _connect(child, self._core)
        return child

    def _signalled(self, number: int) -> None:
        if self._stopping.is_set():
            for child in [*self._apis.values(), *filter(None, [self._core])]:
                _signal(child, signal.SIGKILL)
            os._exit(128 + number)
        self._stop(0)

    def _stop(self, status: int) -> None:
        self._status = self._status or status
        self._stopping.set()

    def _refresh(self) -> None:
        if self._core:
            _signal(self._core, signal.SIGHUP)


async def _start(module: str, child: ChildSettings, files: Sequence[int] = ()) -> _Child:
    """Start a process and send it its settings."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *python_process.command(f"service.server.{module}", str(theirs.fileno())),
            env=python_process.environment(),
            pass_fds=[theirs.fileno(), *files],
            process_group=0,  # a terminal's Ctrl-C reaches the supervisor alone
        )
    with suppress(OSError):  # it has exited already
        child_settings.send(ours, child)
    return _Child(process, ours)


def _connect(api: _Child, core: _Child) -> None:
    """Connect an API process with the core, unless one of them has just ended."""
    ends = socket.socketpair()
    with ends[0], ends[1], suppress(OSError):
        socket.send_fds(api.control, [b"!"], [ends[0].fileno()])
        socket.send_fds(core.control, [b"!"], [ends[1].fileno()])


def _signal(child: _Child, number: int) -> None:
    with suppress(ProcessLookupError):
        child.process.send_signal(number)
