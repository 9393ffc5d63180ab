"""Measures a server: starts it, checks its answers, warms it up, applies load, stops it."""

import asyncio
import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import deployments, environments, processes
from benchmarks.peers.deployments import Deployment, MakeRequest
from benchmarks.peers.environments import Unavailable
from service.bench import load
from service.bench.client import Client, Target
from service.bench.load import OK
from service.bench.process import free_port
from service.imaging import image_folder

_WNID = re.compile(r"^n\d{8}_")
_START_SECONDS = 180.0
_STARTS = 3
_ANSWER_SECONDS = 60.0  # timeout of the last response of a run
_CHECKED = 16  # photos sent at once, which also detects responses in the wrong order
_RIGHT = 0.75  # share of them; the model's own accuracy is about 0.9


@dataclass(frozen=True, slots=True)
class Photo:
    """An image and its label, from the file name."""

    data: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Effort:
    """Duration and connections of the load on each server."""

    seconds: float
    connections: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leg:
    """The result of a server at a number of connections."""

    round: int
    server: str
    engine: str
    body: str
    connections: int
    rate: float  # images a second
    p50: float  # seconds
    p99: float
    answered: int
    errors: Mapping[int, int]  # by status; 0: broken connection


def photos(folder: Path) -> list[Photo]:
    """Read the photos in a folder and below."""
    files = map(Path, image_folder.walk(folder))
    return [Photo(path.read_bytes(), _WNID.sub("", path.stem).replace("_", " ")) for path in files]


class StoppedEarly(Unavailable):
    """A server ended by itself before it was ready."""


def measure(
    name: str, engine: str, images: Sequence[Photo], effort: Effort, number: int
) -> list[Leg]:
    """Measure a server; one that stops at its start (Triton's instances race) is started again."""
    for _ in range(_STARTS - 1):
        with contextlib.suppress(StoppedEarly):
            return _measure(name, engine, images, effort, number)
    return _measure(name, engine, images, effort, number)


def _measure(
    name: str, engine: str, images: Sequence[Photo], effort: Effort, number: int
) -> list[Leg]:
    """Start a server, measure it and stop it; raises `Unavailable` with the reason of a failure."""
    deployment = deployments.SERVERS[name]
    port = free_port()
    command = [
        str(deployments.interpreter(name)),
        *(part.format(port=port) for part in deployment.command),
    ]
    variables = {key: text.format(port=port) for key, text in deployment.environment.items()}
    environments.make_place()
    log = environments.PLACE / f"{name}-{engine}.log"
    environment = {**variables, "ENGINE": engine}
    with processes.running(command, environment, log, environments.ROOT) as process:
        try:
            measurement = _Measurement(deployment, Target("127.0.0.1", port), images, process)
            runs = asyncio.run(measurement.measure(effort))
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
class _Measurement:
    deployment: Deployment
    target: Target
    images: Sequence[Photo]
    process: subprocess.Popen[bytes]

    async def measure(self, effort: Effort) -> dict[tuple[str, int], load.Run]:
        """Return a run for each request format and number of connections."""
        client = Client(self.target)
        try:
            await self._ready(client)
            runs = {}
            for body, make in self.deployment.requests.items():
                await self._check(client, make)
                await self._run(client, make, max(effort.connections), effort.seconds / 2)
                for connections in effort.connections:
                    run = await self._run(client, make, connections, effort.seconds)
                    runs[body, connections] = run
            return runs
        finally:
            client.close()

    async def _ready(self, client: Client) -> None:
        make = next(iter(self.deployment.requests.values()))
        ready = self.deployment.ready
        request = self.target.get(ready) if ready else make(self.target, self.images[0].data)
        try:
            async with asyncio.timeout(_START_SECONDS):
                while (await client.ask(request)).status != OK:
                    if (status := self.process.poll()) is not None:
                        raise StoppedEarly(f"it stopped with status {status} at its start")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise Unavailable(f"it was not ready after {_START_SECONDS:.0f} s") from error

    async def _check(self, client: Client, make: MakeRequest) -> None:
        photos = self.images[:: max(1, len(self.images) // _CHECKED)][:_CHECKED]
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), asyncio.TaskGroup() as tasks:
                replies = [
                    tasks.create_task(client.ask(make(self.target, photo.data))) for photo in photos
                ]
        except TimeoutError as error:
            raise Unavailable("it does not answer") from error
        pairs = zip(photos, replies, strict=True)
        right = sum(photo.label.encode() in task.result().body for photo, task in pairs)
        if right < _RIGHT * len(photos):
            statuses = dict(Counter(task.result().status for task in replies))
            raise Unavailable(f"{right} of {len(photos)} photos are labelled right ({statuses})")

    async def _run(
        self, client: Client, make: MakeRequest, connections: int, seconds: float
    ) -> load.Run:
        requests = [make(self.target, photo.data) for photo in self.images]
        try:
            async with asyncio.timeout(seconds + _ANSWER_SECONDS):
                return await load.closed_loop(
                    client, requests, connections=connections, seconds=seconds
                )
        except TimeoutError as error:
            raise Unavailable(f"it stopped answering at {connections} connections") from error
