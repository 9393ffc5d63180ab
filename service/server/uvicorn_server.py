"""uvicorn's server, made to leave in order: it says so, goes on for a while, then ends."""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import cast

import uvicorn

logger = logging.getLogger(__name__)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Application:
    """What the application does when the process is told something, and what it tells."""

    refresh: Callable[[], None] | None = None  # on SIGHUP
    leave: Callable[[], None] = _nothing  # before the server lets no more requests in
    serves: Callable[[], bool] = lambda: True  # can it answer requests yet


class Server(uvicorn.Server):
    """Serves until it is told to stop, and lets requests in for `drain_seconds` after that.

    Clients need that long to learn that they should go elsewhere; none do before the application
    serves. What is in flight then has uvicorn's `timeout_graceful_shutdown` to be answered.

    It listens to `probes` besides, without encryption.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain_seconds: float,
        probes: socket.socket | None = None,
        application: Application = Application(),
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._application = application
        self._probes = probes
        self._ends_at = math.inf
        self._has_said_so = False

    @property
    def is_leaving(self) -> bool:
        """Has it been told to stop."""
        return math.isfinite(self._ends_at)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if sockets:
            self._log_started_message(sockets)
        if self._application.refresh:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._application.refresh)
        if self._probes is not None:
            listener = await asyncio.get_running_loop().create_server(
                self._connection, sock=self._probes
            )
            self.servers.append(listener)
            host, port, *_ = self._probes.getsockname()
            logger.info("probes and metrics are on port %d of %s", port, host)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let no more requests in, and wait for those in flight."""
        self._application.leave()
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Begin to leave; end at once if told so again."""
        if self.is_leaving:
            # As a shell tells of a signal's victim. The worker goes with it.
            os._exit(128 + sig)  # pragma: no cover - it ends what measures, too
        self._drain_seconds = self._drain_seconds if self._application.serves() else 0.0
        self._ends_at = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Tell, every tenth of a second, whether it is time to end."""
        if self.is_leaving and not self._has_said_so:
            self._has_said_so = True
            logger.info("stopping; requests are let in for %g s more", self._drain_seconds)
        return await super().on_tick(counter) or time.monotonic() >= self._ends_at
