"""uvicorn's server with a graceful shutdown: readiness fails first, new requests end later."""

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
    """Hooks of the application in the life of the process."""

    refresh: Callable[[], None] | None = None  # on SIGHUP
    leave: Callable[[], None] = _nothing  # before the server stops accepting requests
    serves: Callable[[], bool] = lambda: True  # whether it has a model that serves


class Server(uvicorn.Server):
    """Serve until a signal, and accept requests for `drain_seconds` after it.

    Load balancers need that long to stop sending; there is no wait before the application serves.
    Requests in flight then have uvicorn's `timeout_graceful_shutdown`. `probes` is another
    listening socket, without TLS.
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
        self._has_logged = False

    @property
    def is_leaving(self) -> bool:
        """Whether the server is stopping."""
        return math.isfinite(self._ends_at)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
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
        """Stop accepting requests, and wait for those in flight."""
        self._application.leave()
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Begin to stop; exit at once on a second signal."""
        if self.is_leaving:
            # A shell's status for a process ended by a signal. The worker ends with it.
            os._exit(128 + sig)  # pragma: no cover - ends coverage, too
        self._drain_seconds = self._drain_seconds if self._application.serves() else 0.0
        self._ends_at = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Return, every tenth of a second, whether the server is to stop now."""
        if self.is_leaving and not self._has_logged:
            self._has_logged = True
            logger.info("stopping, accepting requests for %g s more", self._drain_seconds)
        return await super().on_tick(counter) or time.monotonic() >= self._ends_at
