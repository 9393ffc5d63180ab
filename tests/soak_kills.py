"""Requests of all shapes to a service of several processes, some of which are killed meanwhile.

What must hold: every request has a documented answer, or its connection was closed while an API
process was killed; every 200 is the answer to that very photo; and once nothing is killed any more,
nothing is left over, and what the service counted is what clients saw.
"""

import argparse
import asyncio
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attacks
import grpc
import httpx2
import soak_requests
from conftest import ROOT, Served, serving
from known import Known, apart
from prometheus_client.parser import text_string_to_metric_families
from soak_requests import OCTETS, SHAPES, VIEWS, Photo, Shape

from service.api.adapters.routers import ROUTERS
from service.api.grpc.messages import Messages
from service.api.open_inference.tensors import OUTPUT
from service.bench.process import free_port
from service.serving.restart_policy import MAX_ENDS
from service.worker.channel import EXITED

MODEL, PHOTOS = "digits", 40
API = "api_process"
CLIENTS, PROCESSES = 12, 2
UPLOADS = 96 * 1024 * 1024  # bytes of memory for uploads, of all API processes
LARGE = 16 * 1024 * 1024  # bytes of a body that takes two thirds of one process's
OK, INTERRUPTED = 200, {503, 504}  # which any request may be answered with while processes end
SUSPECT = 500  # of an image that was being decoded when its worker was killed
CLOSED, LEFT = "closed", "left"  # what becomes of a request without an answer
CALM = 5  # in the last request of so many, nothing is killed
PATIENCE, MINUTE = 60.0, 60.0  # seconds
INFER = "/inference.GRPCInferenceService/ModelInfer"
MESSAGES = Messages()
IDLE = {  # metrics of a service that nothing is left over in
    "googlenet_ready": 1,
    "googlenet_requests_in_flight": 1,  # the scrape
    "googlenet_connections": 1,
    "googlenet_queue_rows": 0,
    "googlenet_queue_background_rows": 0,
    "googlenet_queue_bytes": 0,
    "googlenet_queue_predicted_seconds": 0,
}

Outcomes = Counter[tuple[str, int | str]]  # by the name of the shape, and the status or what else


@dataclass(frozen=True)
class Target:
    """A service and its ports."""

    served: Served
    grpc_port: int

    @property
    def pid(self) -> int:
        """The id of the process that started the others."""
        return self.served.process.pid

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return f"http://127.0.0.1:{self.served.port}"


@dataclass
class Killed:
    """A process, and from when to when it was being killed, by time.monotonic()."""

    module: str
    start: float
    end: float = math.inf


@dataclass
class Soak:
    """Requests to a service, and what became of them."""

    target: Target
    client: httpx2.AsyncClient
    photos: Sequence[Photo]
    outcomes: Outcomes = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # of the server, by sentence
    killed: list[Killed] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)

    async def send(self, count: int, rng: random.Random, victims: Sequence[str] = ()) -> None:
        """Send so many requests of all shapes, and kill the victims at random meanwhile."""
        numbers = iter(range(count))
        turns = sorted(rng.sample(range(count), len(victims)))
        due = [*zip(turns, rng.sample(victims, len(victims)), strict=True)]

        async def ask(chance: random.Random) -> None:
            for number in numbers:
                self._assert_running()
                ready = (one for one in due if number >= one[0] and self._may_kill(one[1]))
                if one := next(ready, None):
                    due.remove(one)
                    await self._kill(one[1], chance)
                await self._one(chance)

        await asyncio.gather(*(ask(random.Random(rng.getrandbits(64))) for _ in range(CLIENTS)))

    def _assert_running(self) -> None:
        assert self.target.served.process.poll() is None, self.target.served.log[-20:]

    def _may_kill(self, module: str) -> bool:
        """Tell whether one more end in this minute leaves the service running."""
        now = time.monotonic()
        lately = [one for one in self.killed if one.module == module and now - one.start < MINUTE]
        return len(lately) + 1 < MAX_ENDS

    async def _kill(self, module: str, chance: random.Random) -> None:
        """Kill a process that runs a module, once there is one; wait for an API process to end."""
        killed = Killed(module, time.monotonic())
        self.killed.append(killed)
        while not (pids := descendants(self.target.pid, module)):
            self._assert_running()
            await asyncio.sleep(0.05)
        pid = chance.choice(pids)
        os.kill(pid, signal.SIGKILL)
        while module == API and exists(pid):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)
        killed.end = time.monotonic()

    async def _one(self, chance: random.Random) -> None:
        """Send one request, or leave it, and keep what became of it."""
        kinds: list[Any] = [*SHAPES, self._leave, self._rpc]
        kind = chance.choices(kinds, weights=[*SHAPES.values(), 6, 6])[0]
        name, start = kind.__name__.lstrip("_"), time.monotonic()
        outcome: int | str
        try:
            outcome = await (self._ask(kind, chance) if kind in SHAPES else kind(chance))
        except (httpx2.TransportError, ConnectionError) as error:
            outcome = CLOSED
            if not self._was_killed(start):
                self.wrongs.append(f"{name}: {error!r}, and no process was killed")
        except AssertionError as error:
            outcome = "wrong"
            self.wrongs.append(f"{name}: {error}"[:500])
        self.outcomes[name, outcome] += 1
        if outcome in {*INTERRUPTED, CLOSED}:  # else most requests would fall into a restart
            await asyncio.sleep(chance.uniform(0.2, 0.5))

    def _was_killed(self, start: float) -> bool:
        """Tell whether an API process ended since a request began."""
        return any(one.module == API and one.end >= start for one in self.killed)

    async def _ask(self, shape: Shape, chance: random.Random) -> int:
        sent = shape(chance, self.photos, MODEL)
        reply = await self.client.request(
            sent.method, sent.path, params=sent.params, content=sent.content, headers=sent.headers
        )
        status = reply.status_code
        if status == OK:
            assert sent.check, f"a wrong request has an answer: {reply.text}"
            sent.check(reply.content)
            return status
        problem = reply.json()
        assert problem.get("status", status) == status  # of the Open Inference Protocol none
        assert status in {*sent.refused, *INTERRUPTED, SUSPECT}, problem
        if status not in sent.refused:
            self._failed(status, problem.get("detail") or problem["error"])
            assert (status == 503) == ("retry-after" in reply.headers)
        return status

    async def _leave(self, chance: random.Random) -> str:
        """Leave a request at any stage, or before its answer."""
        if chance.random() < 0.5:
            stage, reset = chance.choice(attacks.STAGES[1:-1]), chance.random() < 0.5
            image = chance.choice(self.photos).data
            await attacks.leave(self.target.served.port, stage, image, reset=reset)
        else:
            asking = asyncio.create_task(self._ask(soak_requests.form_of_several, chance))
            await asyncio.wait([asking], timeout=chance.uniform(0, 0.05))
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
        return LEFT

    async def _rpc(self, chance: random.Random) -> int:
        """Ask over gRPC; the status is that of HTTP."""
        chosen = chance.sample(self.photos, chance.randint(1, 3))
        contents = {"bytes_contents": [photo.data for photo in chosen]}
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(chosen)]}
        output = {"name": OUTPUT, "parameters": {"classification": {"int64_param": 5}}}
        request = MESSAGES.make(
            "ModelInferRequest", model_name=MODEL,
            inputs=[{**tensor, "contents": contents}], outputs=[output],
        )  # fmt: skip
        address = f"127.0.0.1:{self.target.grpc_port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            try:
                data = await channel.unary_unary(INFER)(request.SerializeToString())
            except grpc.aio.AioRpcError as error:
                trailing = dict(error.trailing_metadata() or ())
                return self._refused(error.code(), str(error.details()), trailing)
        (found,) = MESSAGES.read("ModelInferResponse", data).outputs
        labels = [label.decode() for label in found.contents.bytes_contents]
        answer = {"outputs": [{"shape": [*found.shape], "data": labels}]}
        soak_requests.rankings(chosen, soak_requests.inferred)(json.dumps(answer).encode())
        return OK

    def _refused(self, code: grpc.StatusCode, details: str, trailing: Mapping[str, Any]) -> int:
        if "x-request-id" not in trailing:  # which the service always sends
            raise ConnectionError(details)
        statuses = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.INTERNAL: SUSPECT}
        assert code in statuses, details
        assert (statuses[code] == 503) == ("retry-after" in trailing)
        self._failed(statuses[code], details)
        return statuses[code]

    def _failed(self, status: int, sentence: str) -> None:
        assert status != SUSPECT or sentence == EXITED, sentence
        self.failures[f"{status}: {sentence}"] += 1

    # What is left over.

    async def quiet(self) -> dict[str, float]:
        """Wait until nothing is being answered any more, and give the metrics then."""
        end = time.monotonic() + PATIENCE
        while True:
            series = await self._series()
            if series.items() >= IDLE.items():
                return series
            left = {name: series.get(name) for name in IDLE}
            assert time.monotonic() < end, f"not idle: {left}"
            await asyncio.sleep(0.2)

    async def _series(self) -> dict[str, float]:
        """Scrape the metrics by name and label values; none while a process is replaced."""
        with suppress(httpx2.TransportError):
            reply = await self.client.get("/metrics")
            return {
                "/".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): (
                    sample.value
                )
                for family in text_string_to_metric_families(reply.text if reply.is_success else "")
                for sample in family.samples
            }
        return {}

    async def fill(self) -> None:
        """Send bodies for which most of the memory for uploads is needed, to each process."""
        for _ in range(8 * PROCESSES):
            reply = await self.client.post("/classify", content=bytes(LARGE), headers=OCTETS)
            assert reply.status_code == 415, reply.text


def descendants(pid: int, module: str) -> list[int]:
    """Give the ids of the processes below one that run a module whose name ends so."""
    found = []
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()  # empty once it has ended
                found += [child] * (f"{module}\0".encode() in command)
            found += descendants(child, module)
    return found


def exists(pid: int) -> bool:
    """Tell whether a process has any thread, and so may have connections."""
    return Path(f"/proc/{pid}").exists()


def memory(pid: int) -> int:
    """Add up the resident bytes of a process and all below it."""
    pages = [Path(f"/proc/{one}/statm").read_text().split()[1] for one in descendants(pid, "")]
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


async def learn(client: httpx2.AsyncClient, images: Sequence[bytes]) -> list[Photo]:
    """Ask for one image after the other, alone, and keep those whose answers differ clearly."""
    learnt: dict[bytes, Photo] = {}
    for data in images:
        rankings = {}
        for views in (*VIEWS, "paper"):
            params = {"views": views, "top_k": 1000}
            reply = await client.post("/classify", params=params, content=data, headers=OCTETS)
            rankings[views] = soak_requests.ranking(reply.json())
        reply = await client.post("/embed", content=data, headers=OCTETS)
        learnt[data] = Photo(f"{len(learnt)}.jpg", data, rankings, reply.json()["features"])
    known = [Known(photo.data, dict(photo.rankings["single"])) for photo in learnt.values()]
    return [learnt[one.data] for one in apart(known, len(known) // 4)]


def victims(requests: int) -> list[str]:
    """Say which processes are killed meanwhile."""
    return [
        *[API] * (3 + requests // 1000),
        *["worker.main"] * (1 + requests // 2000),
        *["core_process"] * (1 + requests // 10_000),
    ]


@contextmanager
def started() -> Iterator[Target]:
    """Start a service of several processes, with every protocol."""
    port = free_port()
    with serving(
        "--model", MODEL, "--model-store", str(ROOT / "model_store"), "--views", "single",
        "--precision", "float32", "--max-batch", "8", "--api-processes", str(PROCESSES),
        "--grpc-port", str(port), "--adapters", ",".join(ROUTERS),
        "--max-inflight-body-bytes", str(UPLOADS),
    ) as served:  # fmt: skip
        yield Target(served, port)


async def soak(target: Target, images: Sequence[bytes], requests: int, seed: int) -> dict[str, Any]:
    """Send so many requests, in the last of which nothing is killed; returns the figures."""
    limits, rng = httpx2.Limits(max_keepalive_connections=0), random.Random(seed)
    async with httpx2.AsyncClient(base_url=target.url, limits=limits, timeout=PATIENCE) as client:
        ours = Soak(target, client, ())
        await ours.quiet()
        ours.photos = await learn(client, images)
        calm, used = requests // CALM, [memory(target.pid)]
        await ours.send(requests - calm, rng, victims(requests))
        before, stormy = await ours.quiet(), Counter(ours.outcomes)
        used.append(memory(target.pid))
        await ours.send(calm, rng)
        after = await ours.quiet()
        used.append(memory(target.pid))
        await ours.fill()
    return {
        "photos": len(ours.photos),
        "requests": ours.outcomes.total(),
        "by shape": _by_shape(ours.outcomes),
        "by status": {str(key): count for key, count in _by_status(ours.outcomes).items()},
        "failures": dict(ours.failures),
        "killed": dict(Counter(killed.module for killed in ours.killed)),
        "wrong": ours.wrongs,
        "miscounted": _miscounted(before, after, _by_status(ours.outcomes - stormy)),
        "memory": used,
    }


def _by_status(outcomes: Outcomes) -> Counter[int | str]:
    total: Counter[int | str] = Counter()
    for (_, outcome), count in outcomes.items():
        total[outcome] += count
    return total


def _by_shape(outcomes: Outcomes) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (name, outcome), count in sorted(outcomes.items(), key=str):
        table.setdefault(name, {})[str(outcome)] = count
    return table


def _miscounted(
    before: Mapping[str, float], after: Mapping[str, float], seen: Counter[int | str]
) -> dict[str, int]:
    """Compare what was counted with what clients saw: only those that left may be more."""
    counted: Counter[int | str] = Counter()
    for name, value in after.items():
        _, _, labels = name.partition("googlenet_requests_total/")
        if labels and "/GET/" not in labels:
            counted[int(labels.split("/")[0])] += int(value - before.get(name, 0))
    left = seen.pop(LEFT, 0)
    extra = {status: counted[status] - seen[status] for status in {*counted, *seen}}
    if min(extra.values()) >= 0 and sum(extra.values()) <= left:
        return {}
    return {str(status): count for status, count in extra.items() if count}


def photos(folder: Path) -> list[bytes]:
    """Read the first photos of a folder."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.[jJ]*"))[:PHOTOS]]


def main() -> int:
    """Soak, print the figures, and tell by the exit status whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with started() as target:
        figures = asyncio.run(soak(target, photos(given.photos), given.requests, given.seed))
    print(json.dumps(figures, indent=1))
    return int(bool(figures["wrong"] or figures["miscounted"]))


if __name__ == "__main__":
    sys.exit(main())
