"""A service process that runs for the time of a measurement."""

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
# What is measured is a listening process and its worker; the environment may name ports of
# another service on this machine.
_ALONE = ("--api-processes", "1", "--probe-port", "0", "--grpc-port", "0")


@dataclass(frozen=True, slots=True)
class Started:
    """A ready service, its process id, and the seconds from its start to readiness."""

    client: Client
    pid: int
    seconds: float


@asynccontextmanager
async def serving(arguments: Sequence[str]) -> AsyncIterator[Started]:
    """Run a service with these options; raises `BenchError` if it does not become ready.

    The service logs to standard error.
    """
    port = free_port()
    listen = ("--host", "127.0.0.1", "--port", str(port), *_ALONE)
    command = python_process.command("service", "serve", *arguments, *listen)
    started = time.perf_counter()
    process = subprocess.Popen(command, env=python_process.environment())  # noqa: ASYNC220, S603 - this program; does not block
    client = Client(Target("127.0.0.1", port))
    try:
        while (await client.ask(client.target.get("/readyz"))).status != OK:
            _check_starting(process, started)
            await asyncio.sleep(_POLL_SECONDS)
        yield Started(client, process.pid, time.perf_counter() - started)
    finally:
        client.close()
        process.terminate()
        await asyncio.to_thread(process.wait, _STOP_SECONDS)


def _check_starting(process: subprocess.Popen[bytes], started: float) -> None:
    if process.poll() is not None or time.perf_counter() - started > _READY_SECONDS:
        raise BenchError("the service did not become ready; see its log above")


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
