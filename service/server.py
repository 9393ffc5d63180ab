"""uvicorn's server, made to leave in order: it says so, goes on for a while, then ends."""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves until it is told to stop, and lets requests in for `drain_seconds` after that.

    Whoever sends them needs that long to learn that they should go elsewhere. What is in flight
    then has uvicorn's `timeout_graceful_shutdown` to be answered.

    It listens to `probes` besides, without encryption. On SIGHUP it does what `on_hangup` says,
    and what `on_shutdown` says when it lets no more requests in.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain_seconds: float,
        probes: socket.socket | None = None,
        on_hangup: "Callable[[], None] | None" = None,
        on_shutdown: "Callable[[], None] | None" = None,
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._on_hangup = on_hangup
        self._on_shutdown = on_shutdown
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
        if self._on_hangup:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        if self._probes is not None:
            listener = await asyncio.get_running_loop().create_server(
                self._connection, sock=self._probes
            )
            self.servers.append(listener)
            host, port, *_ = self._probes.getsockname()
            logger.info("probes and metrics are on port %d of %s", port, host)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let no more requests in, and wait for those in flight."""
        if self._on_shutdown:
            self._on_shutdown()
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
        self._ends_at = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Tell, every tenth of a second, whether it is time to end."""
        if self.is_leaving and not self._has_said_so:
            self._has_said_so = True
            logger.info("stopping; requests are let in for %g s more", self._drain_seconds)
        return await super().on_tick(counter) or time.monotonic() >= self._ends_at
