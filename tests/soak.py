"""Mixed traffic, hostile callers and faults for as long as one likes, and what must hold meanwhile.

Images whose answers are known go to a real process, beside broken ones, callers who leave,
floods and attacks, in rounds; after each round all is quiet for a moment, and everything must be
as it was: nobody lost, nobody answered with another's result, nothing grown.
"""

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attacks
import bombs
import httpx2
import mutations
from known import SAME, Known, apart, distance, scores
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
DOCUMENTED = {200, 400, 408, 413, 415, 422, 499, 500, 503, 504}
INJECTED = "inference_failed"  # the code of the faults that are ours
PASSING = {INJECTED, "deadline_exceeded"}  # of one image among several
ROUND = 30.0  # seconds, of which a third is for attacks
QUIET = 60.0  # seconds in which all that was accepted must be done
IMAGES = 100
REGULARS, MUTANTS, LEAVERS, ATTACKERS = 4, 32, 2, 8  # callers at once
FLOOD, ROUNDS = 200, 4  # callers at once, in each first of so many rounds
LONGEST = 3.0  # seconds that a refused caller waits, whatever he is told
OK, BUSY, FAILED = 200, 503, 500
PATIENCE = 120.0  # seconds after which an answer is lost

Asking = Callable[[int, random.Random], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Sample:
    """What the processes have when all is quiet."""

    memory: float  # bytes, of both
    files: float
    threads: float


@dataclass
class Soak:
    """Callers of one process, and what became of them."""

    client: httpx2.AsyncClient
    port: int
    known: Sequence[Known]
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        """Go round after round for so long, at least once."""
        end = time.monotonic() + seconds
        each = min(ROUND, seconds)
        number = 0
        while not number or time.monotonic() < end - each / 2:
            await self._round(number, each)
            number += 1
            print(self.samples[-1], dict(self.statuses), file=sys.stderr, flush=True)

    async def _round(self, number: int, seconds: float) -> None:
        chance = random.Random(self.seed * 1_000_003 + number)
        before = await self._series()
        told = Counter(self.statuses)
        left = self.counts["callers that left"]
        regular = [self._ask_known] * REGULARS + [self._ask_broken] * MUTANTS
        flood = [self._flood] if number % ROUNDS == 0 else []
        await self._all(chance, [*regular, *[self._leave] * LEAVERS, *flood], seconds * 2 / 3)
        series = await self._quiet()
        self._add_up(before, series, self.statuses - told, self.counts["callers that left"] - left)
        await self._all(chance, [self._ask_known, *[self._attack] * ATTACKERS], seconds / 3)
        self.samples.append(_sample(await self._quiet()))

    @staticmethod
    async def _all(chance: random.Random, asking: Sequence[Asking], seconds: float) -> None:
        """Have each ask again and again."""
        end = time.monotonic() + seconds

        async def again(one: Asking, own: random.Random) -> None:
            number = 0
            while time.monotonic() < end:
                await one(number, own)
                number += 1

        async with asyncio.TaskGroup() as tasks:
            for one in asking:
                tasks.create_task(again(one, random.Random(chance.getrandbits(64))))

    # Who asks.

    async def _ask_known(self, number: int, chance: random.Random, views: str = "") -> None:
        """Ask for known images, and see that they are answered as they have to be."""
        several = number % 10 == 9
        asked = chance.sample(self.known, 3 if several else 1)
        views = views or chance.choice(["single"] * 9 + ["ten"])
        parts = [("file", (str(n), one.data)) for n, one in enumerate(asked)]
        reply = await self._post({"views": views, "top_k": "1000"}, files=parts)
        if reply is None or reply.status_code != OK or views != "single":
            return
        answers = reply.json().get("results", [reply.json()])
        for one, answer in zip(asked, answers, strict=True):
            if "predictions" not in answer:
                self._expect(answer["error"]["code"] in PASSING, reply)
            elif distance(scores(json.dumps(answer).encode()), one.scores) > SAME:
                self.counts["wrong answers"] += 1
            else:
                self.counts["right answers"] += 1

    async def _ask_broken(self, _: int, chance: random.Random) -> None:
        """Send an image that was damaged, or a bomb."""
        if chance.random() < 0.001:
            data = chance.choice([*bombs.BOMBS.values()])()
        else:
            data = mutations.mutated(chance.getrandbits(32), mutations.good())
        reply = await self._post({"views": "single"}, content=data, headers=RAW)
        while reply is not None and reply.status_code == BUSY:
            await asyncio.sleep(min(reply.json()["retry_after_ms"] / 1000, LONGEST))
            reply = await self._post({"views": "single"}, content=data, headers=RAW)
        self.counts["broken images"] += 1

    async def _leave(self, _: int, chance: random.Random) -> None:
        """Ask, and be gone before the answer."""
        asking = asyncio.create_task(
            self.client.post("/classify", content=chance.choice(self.known).data, headers=RAW)
        )
        await asyncio.wait([asking], timeout=chance.uniform(0, 0.2))
        asking.cancel()
        self.counts["callers that left"] += 1
        with contextlib.suppress(asyncio.CancelledError, httpx2.HTTPError):
            await asking

    async def _flood(self, number: int, chance: random.Random) -> None:
        """Ask once, at some moment, for more than can be done."""
        if number:
            await asyncio.sleep(1)
            return
        await asyncio.sleep(chance.uniform(0, 5))
        async with asyncio.TaskGroup() as tasks:
            for _caller in range(FLOOD):
                own = random.Random(chance.getrandbits(64))
                views = own.choice(["single", "ten", "paper"])
                tasks.create_task(self._ask_known(0, own, views))
        self.counts["floods"] += 1

    async def _attack(self, _: int, chance: random.Random) -> None:
        image, seed = chance.choice(self.known).data, chance.getrandbits(32)
        with contextlib.suppress(TimeoutError, OSError):
            await attacks.any_of_them(self.port, image, seed=seed, pause=0.05)
        self.counts["attacks"] += 1

    # What must hold.

    async def _post(self, params: dict[str, str], **what: Any) -> httpx2.Response | None:
        try:
            reply = await self.client.post("/classify", params=params, **what)
        except httpx2.HTTPError as error:
            self.counts["lost"] += 1
            self.wrongs.append(repr(error))
            return None
        self.statuses[reply.status_code] += 1
        self._expect(reply.status_code in DOCUMENTED, reply)
        if reply.status_code == FAILED:
            self._expect(reply.json()["code"] == INJECTED, reply)
        return reply

    def _expect(self, right: bool, reply: httpx2.Response) -> None:  # noqa: FBT001 - a condition
        if not right:
            self.counts["undocumented answers"] += 1
            self.wrongs.append(f"{reply.status_code} {reply.text}")

    async def _quiet(self) -> dict[str, float]:
        """Wait until nobody is being answered, and give what the service says of itself then."""
        end = time.monotonic() + QUIET
        while True:
            series = await self._series()
            if series["googlenet_requests_in_flight"] == 1 and not series["googlenet_queue_rows"]:
                return series  # the one that asks
            if time.monotonic() > end:
                raise AssertionError("what was accepted does not come to its end")
            await asyncio.sleep(0.2)

    async def _series(self) -> dict[str, float]:
        reply = await self.client.get("/metrics")
        return {
            sample.name + "".join(f"/{sample.labels[name]}" for name in sorted(sample.labels)): (
                sample.value
            )
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }

    def _add_up(
        self, before: dict[str, float], after: dict[str, float], told: Counter[int], left: int
    ) -> None:
        """Compare what the service counted with what callers saw: only those who left differ."""
        counted = {
            int(name.split("/")[1]): value - before.get(name, 0.0)
            for name, value in after.items()
            if name.startswith("googlenet_requests_total/") and name.endswith("/classify")
        }
        extra = {code: count - told[code] for code, count in counted.items()}
        if min(extra.values()) < 0 or sum(extra.values()) > left:
            self.wrongs.append(f"counted {counted}, seen {told}, left {left}")


RAW = {"content-type": "application/octet-stream"}


def _sample(series: dict[str, float]) -> Sample:
    def both(name: str) -> float:
        names = ("process_" + name, "googlenet_worker_process_" + name)
        return sum(value for one, value in series.items() if one.partition("/")[0] in names)

    return Sample(
        both("resident_memory_bytes"),
        both("open_fds"),
        sum(series[f"googlenet_process_threads/{process}"] for process in ("http", "worker")),
    )


async def learn(client: httpx2.AsyncClient, images: Sequence[bytes]) -> list[Known]:
    """Ask for one image after the other, alone, until the answers to so many are known."""
    candidates = []
    for image in images:
        for _ in range(100):  # some fail, here too
            asked = {"views": "single", "top_k": "1000"}
            reply = await client.post("/classify", params=asked, content=image, headers=RAW)
            if reply.status_code == OK:
                candidates.append(Known(image, scores(reply.content)))
                break
    return apart(candidates, min(IMAGES, len(candidates) // 2))


@contextlib.contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Have a process serve, and give its port."""
    command = [sys.executable, str(HERE / "soak_server.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@contextlib.asynccontextmanager
async def calling(port: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client of it, once it is ready."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE) as client:
        for _ in range(600):
            if (await client.get("/readyz")).status_code == OK:
                break
            await asyncio.sleep(0.1)
        yield client


async def soak(port: int, images: Sequence[bytes], seconds: float, seed: int) -> Soak:
    """Learn the answers, then go on for so long."""
    async with calling(port) as client:
        soaked = Soak(client, port, await learn(client, images), seed)
        await soaked.run(seconds)
    return soaked


def photos(folder: Path, most: int = IMAGES) -> list[bytes]:
    """Read the photos of a folder, in the order of their names."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"}]
    return [path.read_bytes() for path in sorted(paths)[:most]]


def verdict(soaked: Soak, injected: dict[str, int]) -> dict[str, Any]:
    """Sum up: the figures of the table of reliability."""
    settled, last = soaked.samples[len(soaked.samples) // 2], soaked.samples[-1]
    counts = soaked.counts
    return {
        **{name: counts[name] for name in sorted(counts)},
        "requests": soaked.statuses.total(),
        "by status": dict(sorted(soaked.statuses.items())),
        "faults injected": injected,
        "lost": counts["lost"],
        "wrong answers": counts["wrong answers"],
        "undocumented answers": counts["undocumented answers"],
        "memory grown": round(last.memory / settled.memory - 1, 4),
        "files grown": last.files - settled.files,
        "threads grown": last.threads - settled.threads,
        "wrong": soaked.wrongs[:20],
    }


def main() -> int:
    """Soak, print the figures, and tell by the exit status whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="googlenet")
    parser.add_argument("--model-store", type=Path)
    given = parser.parse_args()
    store = ["--model-store", str(given.model_store)] if given.model_store else []
    with serving(["--model", given.model, "--seed", str(given.seed), *store]) as (port, process):
        soaked = asyncio.run(soak(port, photos(given.photos), 60 * given.minutes, given.seed))
        process.terminate()
        assert process.stdout is not None
        found = verdict(soaked, json.loads(process.stdout.read()))
    print(json.dumps(found, indent=1))
    return int(bool(soaked.wrongs or found["wrong answers"] or found["files grown"] > 0))


if __name__ == "__main__":
    sys.exit(main())
