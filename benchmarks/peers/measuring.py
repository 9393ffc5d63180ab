"""One server, from its start to its end: ready, right, warm, measured."""

import asyncio
import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import deployments, environments, processes
from benchmarks.peers.deployments import Ask, Deployment
from benchmarks.peers.environments import Unavailable
from service.bench import load
from service.bench.client import Client, Target
from service.bench.load import OK
from service.bench.process import free_port

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_WNID = re.compile(r"^n\d{8}_")
_START_SECONDS = 180.0
_STARTS = 3
_ANSWER_SECONDS = 60.0  # the longest that the last answer of a leg may take
_CHECKED = 16  # photos asked at once, so that answers that got mixed up are seen too
_RIGHT = 0.75  # of them; the model itself has nine of ten


@dataclass(frozen=True, slots=True)
class Photo:
    """An image and the label that its file's name says."""

    data: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how hard to ask each server."""

    seconds: float
    connections: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leg:
    """What one server did at one number of connections."""

    round: int
    server: str
    engine: str
    body: str
    connections: int
    rate: float  # images a second
    p50: float  # seconds
    p99: float
    answered: int
    errors: Mapping[int, int]  # by status; 0: the connection broke


def photos(folder: Path) -> list[Photo]:
    """Read the photos in a folder and below."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return [Photo(path.read_bytes(), _WNID.sub("", path.stem).replace("_", " ")) for path in files]


class StoppedEarly(Unavailable):
    """A server ended by itself before it was ready."""


def measure(
    name: str, engine: str, images: Sequence[Photo], effort: Effort, number: int
) -> list[Leg]:
    """Measure a server; one that stops at its start (Triton's instances race) may try again."""
    for _ in range(_STARTS - 1):
        with contextlib.suppress(StoppedEarly):
            return _measure(name, engine, images, effort, number)
    return _measure(name, engine, images, effort, number)


def _measure(
    name: str, engine: str, images: Sequence[Photo], effort: Effort, number: int
) -> list[Leg]:
    """Start a server, measure it and stop it; raises `Unavailable` with the reason if not."""
    deployment = deployments.SERVERS[name]
    port = free_port()
    command = [
        str(deployments.interpreter(name)),
        *(part.format(port=port) for part in deployment.command),
    ]
    given = {key: text.format(port=port) for key, text in deployment.environment.items()}
    environments.make_place()
    log = environments.PLACE / f"{name}-{engine}.log"
    environment = {**given, "ENGINE": engine}
    with processes.running(command, environment, log, environments.ROOT) as process:
        try:
            visit = _Visit(deployment, Target("127.0.0.1", port), images, process)
            runs = asyncio.run(visit.measure(effort))
        except Unavailable as error:
            raise type(error)(f"{error} (see {log.relative_to(environments.ROOT)})") from error
    return [
        _leg(run, number, name, engine, body, connections)
        for (body, connections), run in runs.items()
    ]


def _leg(  # noqa: PLR0913, PLR0917 - a row of a table
    run: load.Run, number: int, name: str, engine: str, body: str, connections: int
) -> Leg:
    return Leg(
        round=number,
        server=name,
        engine=engine,
        body=body,
        connections=connections,
        rate=run.rate,
        p50=load.quantile(run.accepted, 0.5),
        p99=load.quantile(run.accepted, 0.99),
        answered=len(run.accepted),
        errors=Counter(sample.status for sample in run.samples if sample.status != OK),
    )


@dataclass(frozen=True, slots=True)
class _Visit:
    deployment: Deployment
    target: Target
    images: Sequence[Photo]
    process: subprocess.Popen[bytes]

    async def measure(self, effort: Effort) -> dict[tuple[str, int], load.Run]:
        """Give a run for each kind of body and number of connections."""
        client = Client(self.target)
        try:
            await self._ready(client)
            runs = {}
            for body, ask in self.deployment.asks.items():
                await self._check(client, ask)
                await self._run(client, ask, max(effort.connections), effort.seconds / 2)
                for connections in effort.connections:
                    run = await self._run(client, ask, connections, effort.seconds)
                    runs[body, connections] = run
            return runs
        finally:
            client.close()

    async def _ready(self, client: Client) -> None:
        ask = next(iter(self.deployment.asks.values()))
        ready = self.deployment.ready
        request = self.target.get(ready) if ready else ask(self.target, self.images[0].data)
        try:
            async with asyncio.timeout(_START_SECONDS):
                while (await client.ask(request)).status != OK:
                    if (status := self.process.poll()) is not None:
                        raise StoppedEarly(f"it stopped with status {status} at its start")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise Unavailable(f"it was not ready after {_START_SECONDS:.0f} s") from error

    async def _check(self, client: Client, ask: Ask) -> None:
        some = self.images[:: max(1, len(self.images) // _CHECKED)][:_CHECKED]
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(client.ask(ask(self.target, photo.data))) for photo in some
                ]
        except TimeoutError as error:
            raise Unavailable("it does not answer") from error
        pairs = zip(some, asked, strict=True)
        right = sum(photo.label.encode() in task.result().body for photo, task in pairs)
        if right < _RIGHT * len(some):
            statuses = dict(Counter(task.result().status for task in asked))
            raise Unavailable(f"{right} of {len(some)} photos are labelled right ({statuses})")

    async def _run(self, client: Client, ask: Ask, connections: int, seconds: float) -> load.Run:
        requests = [ask(self.target, photo.data) for photo in self.images]
        try:
            async with asyncio.timeout(seconds + _ANSWER_SECONDS):
                return await load.closed(client, requests, connections=connections, seconds=seconds)
        except TimeoutError as error:
            raise Unavailable(f"it stopped answering at {connections} connections") from error
