"""How late the event loop is: what everything that waits on it has to wait besides."""

import asyncio
import time
from collections.abc import Callable

EVERY = 0.5  # seconds; often enough to meet what blocks, seldom enough to cost nothing


async def watch(report: Callable[[float], None]) -> None:
    """Report, for as long as it is not cancelled, by how many seconds a timer came late."""
    while True:
        due = time.monotonic() + EVERY
        await asyncio.sleep(EVERY)
        report(time.monotonic() - due)
