"""The command that says how many replicas are needed."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from rich.table import Table

from service import cpu_info
from service.bench import photos
from service.bench.capacity import planner, stage_times
from service.bench.capacity.planner import HELPS, SHARE, Plan, Prediction, Traffic
from service.bench.capacity.replica_model import JobSpec, Replica
from service.bench.capacity.stage_times import Subject
from service.cli import console
from service.imaging.image_decoder import Bounds
from service.settings import Settings
from service.worker import client


def plan(settings: Settings, given: dict[str, Any]) -> int:
    """Measure a replica here and print how many of it are needed; fails if no number will do."""
    images = (
        photos.read(given["folder"], partial(console.say, stderr=True))
        if given["folder"]
        else [photos.sample()]
    )
    traffic = Traffic(given["rate"], given["slo"], settings.timeout_seconds)
    console.say("measuring each stage", stderr=True)
    replica, spec = asyncio.run(_measured(settings, images))
    console.say("simulating", stderr=True)
    found = planner.plan(replica, spec, traffic)
    if given["json"]:
        console.say(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        console.terminal().print(table(found))
        console.say("\n".join(sentences(found)))
    return int(found.needed is None)


async def _measured(settings: Settings, images: Sequence[bytes]) -> tuple[Replica, JobSpec]:
    http = await stage_times.http(images[0])
    backend = await asyncio.to_thread(client.load, settings, Future())
    try:
        decoders = cpu_info.decoding(settings.decode_threads)
        bounds = Bounds(settings.max_pixels, heic=settings.heic)
        subject = Subject(backend, images, settings.views, bounds, decoders)
        return await stage_times.measure(subject, http), subject.spec
    finally:
        backend.close()


def table(found: Plan) -> Table:
    """Lay a plan's predictions out."""
    wanted = found.traffic
    within = f"{100 * SHARE:g} % of them within {1e3 * wanted.objective:g} ms"
    shown = console.table(
        f"{wanted.rate:g} requests a second, {within}",
        *("replicas", "busiest stage", "busy", "p50 ms", "p99 ms", "refused", "objective"),
    )
    for one in found.predictions:
        shown.add_row(*_row(one))
    return shown


def _row(one: Prediction) -> list[str]:
    busiest = max(one.utilisation, key=lambda stage: one.utilisation[stage])
    met = "met" if one.met else "missed"
    return [
        *(str(one.replicas), busiest, f"{100 * one.utilisation[busiest]:.0f} %"),
        *(_ms(one.p50), _ms(one.p99), f"{100 * one.refused:.1f} %", met),
    ]


def sentences(found: Plan) -> list[str]:
    """Say what follows from a plan."""
    alone = f"a request that is alone takes {_ms(found.alone)} ms"
    if found.needed is None:
        return [f"no number of replicas meets the objective: {alone}"]
    more = planner.step(found.enough)
    little = f"{more} more take off less than {100 * HELPS:g} % of p99"
    return [
        f"replicas needed: {found.needed}; {alone}",
        f"more than {found.enough} hardly help: {little}",
    ]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"
