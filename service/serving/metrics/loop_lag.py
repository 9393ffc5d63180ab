"""Event-loop lag: the delay that blocking work adds to everything on the loop."""

import asyncio
import time
from collections.abc import Callable

EVERY = 0.5  # seconds: often enough to observe what blocks, and cheap


async def watch(report: Callable[[float], None]) -> None:
    """Report by how many seconds each timer was late, until cancelled."""
    while True:
        due = time.monotonic() + EVERY
        await asyncio.sleep(EVERY)
        report(time.monotonic() - due)
