"""The supervised service of a simulated day, and its incidents."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from service import python_process
from service.bench import load
from service.bench.client import Client

PROBE, PROBE_FAILURES = 0.5, 3  # of liveness: period in seconds, failures until a restart
SCRAPE = 0.5  # seconds between two scrapes
ROOT = Path(__file__).parents[1]
DIGIT = ROOT / "model_store/digits/held_out/3.png"

# Small and quick to start: one core computes, one is left for the rest.
OPTIONS = (
    *("--model", "digits", "--device", "cpu", "--precision", "float32", "--cpu-threads", "1"),
    *("--max-batch", "8", "--timeout-seconds", "5"),
)

Note = Callable[[str], None]


class Service:
    """A service process that is restarted when it ends or its liveness probe fails."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.process: asyncio.subprocess.Process | None = None
        self.enabled = asyncio.Event()  # cleared: it is not restarted
        self.enabled.set()

    async def supervise(self) -> None:
        """Run and restart the service until cancelled."""
        port = str(self._client.target.port)
        command = python_process.command("service", "serve", "--port", port, *OPTIONS)
        while True:
            await self.enabled.wait()
            self.process = await asyncio.create_subprocess_exec(
                *command, stderr=asyncio.subprocess.DEVNULL, env=python_process.environment()
            )
            probing = asyncio.create_task(self._probe(self.process))
            try:
                await self.process.wait()
            except asyncio.CancelledError:
                self.process.terminate()
                await self.process.wait()
                raise
            finally:
                probing.cancel()

    async def _probe(self, process: asyncio.subprocess.Process) -> None:
        while not await self.responds("/startupz"):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(PROBE)
        failures = 0
        while failures < PROBE_FAILURES:
            await asyncio.sleep(PROBE)
            failures = 0 if await self.responds("/livez") else failures + 1
        process.kill()

    async def responds(self, path: str) -> bool:
        """Return whether a path has status 200."""
        return (await self._client.ask(self._client.target.get(path))).status == load.OK

    async def send_large(self) -> None:
        """Send a request that takes about a second."""
        png = {"Content-Type": "image/png"}
        target = self._client.target
        await self._client.ask(target.post("/classify?views=paper", DIGIT.read_bytes(), png))

    @property
    def pid(self) -> int:
        """The id of the HTTP process."""
        assert self.process is not None  # noqa: S101 - it has become ready
        return self.process.pid

    @property
    def worker(self) -> int:
        """The id of the worker process."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        (pid,) = [pid for file in children for pid in file.read_text().split()]
        return int(pid)

    async def become_ready(self) -> None:
        """Wait for readiness."""
        while not await self.responds("/readyz"):  # noqa: ASYNC110 - the same
            await asyncio.sleep(PROBE)


@asynccontextmanager
async def supervised(client: Client) -> AsyncIterator[Service]:
    """Run a supervised service."""
    service = Service(client)
    supervising = asyncio.create_task(service.supervise())
    try:
        await service.become_ready()
        yield service
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        client.close()


async def stop_worker(service: Service, note: Note) -> None:
    """Stop the worker in a batch, for longer than a batch may take, and continue it."""
    worker = service.worker
    large = asyncio.create_task(service.send_large())
    await asyncio.sleep(0.3)  # a part of its duration
    os.kill(worker, signal.SIGSTOP)
    note(">>> the worker is stopped (SIGSTOP)")
    try:
        await asyncio.sleep(30)
    finally:
        os.kill(worker, signal.SIGCONT)
        note(">>> the worker continues (SIGCONT)")
    await large


async def kill_worker(service: Service, note: Note) -> None:
    """Kill the worker: the liveness probe fails, and the service is restarted."""
    os.kill(service.worker, signal.SIGKILL)
    note(">>> the worker is killed")
    await asyncio.sleep(PROBE * (PROBE_FAILURES + 1))
    await service.become_ready()
    note(">>> restarted and ready")


async def restart_often(service: Service, note: Note) -> None:
    """Kill the service after each scrape, five times."""
    for _ in range(5):
        old = service.pid
        service.process.kill()  # type: ignore[union-attr]  # `pid` has checked
        note(">>> the service is killed")
        while service.pid == old or not await service.responds("/metrics"):  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * SCRAPE)
    await service.become_ready()
    note(">>> ready")


async def stop_service(service: Service, note: Note) -> None:
    """Stop the service for ten seconds."""
    service.enabled.clear()
    service.process.kill()  # type: ignore[union-attr]  # it runs
    note(">>> the service is killed and not restarted")
    await asyncio.sleep(10)
    service.enabled.set()
    await service.become_ready()
    note(">>> restarted and ready")
