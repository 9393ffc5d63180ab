"""A service of one's own to measure: a process that ends with the measurement."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service import python_process
from service.bench.client import Client, Target
from service.bench.load import OK
from service.errors import BenchError

_READY_SECONDS = 300
_POLL_SECONDS = 0.02
_STOP_SECONDS = 60
# Ports that the environment names, as the image's does, are those of a service that may run here.
_NO_OTHERS = ("--probe-port", "0", "--grpc-port", "0")


@dataclass(frozen=True, slots=True)
class Started:
    """A service that runs, and the seconds it took until it was ready."""

    client: Client
    seconds: float


@asynccontextmanager
async def serving(arguments: Sequence[str]) -> AsyncIterator[Started]:
    """Serve with these options; raises `BenchError` if that does not become ready.

    What the service has to say it says itself, on standard error.
    """
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", str(port), *_NO_OTHERS)
    command = python_process.command("service", "serve", *arguments, *where)
    started = time.perf_counter()
    process = subprocess.Popen(command, env=python_process.environment())  # noqa: ASYNC220, S603 - ourselves, and at once
    client = Client(Target("127.0.0.1", port))
    try:
        while (await client.ask(client.target.get("/readyz"))).status != OK:
            _expect(process, started)
            await asyncio.sleep(_POLL_SECONDS)
        yield Started(client, time.perf_counter() - started)
    finally:
        client.close()
        process.terminate()
        await asyncio.to_thread(process.wait, _STOP_SECONDS)


def _expect(process: subprocess.Popen[bytes], started: float) -> None:
    if process.poll() is not None or time.perf_counter() - started > _READY_SECONDS:
        raise BenchError("the service did not become ready; it says why above")


def free_port() -> int:
    """Give a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
