"""uvicorn's server, made to leave in order: it says so, goes on for a while, then ends."""

import logging
import math
import os
import time
from types import FrameType

import uvicorn

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves until it is told to stop, and lets requests in for `drain_seconds` after that.

    Whoever sends them needs that long to learn that they should go elsewhere. What is in flight
    then has uvicorn's `timeout_graceful_shutdown` to be answered.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._ends_at = math.inf
        self._has_said_so = False

    @property
    def is_leaving(self) -> bool:
        """Has it been told to stop."""
        return math.isfinite(self._ends_at)

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
