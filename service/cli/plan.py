"""The plan command: the number of replicas for a request rate."""

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
from service.bench.capacity.replica_model import Replica, Rows
from service.bench.capacity.stage_times import Subject
from service.cli import console
from service.imaging.image_decoder import Bounds
from service.settings import Settings
from service.worker import client


def plan(settings: Settings, given: dict[str, Any]) -> int:
    """Measure a replica here and print how many are needed; fails if no number is enough."""
    images = (
        photos.read(given["folder"], partial(console.say, stderr=True))
        if given["folder"]
        else [photos.sample()]
    )
    traffic = Traffic(given["rate"], given["slo"], settings.timeout_seconds)
    console.say("measuring each stage", stderr=True)
    replica, rows = asyncio.run(_measured(settings, images))
    console.say("simulating", stderr=True)
    capacity = planner.plan(replica, rows, traffic)
    if given["json"]:
        console.say(json.dumps(dataclasses.asdict(capacity), indent=2))
    else:
        console.terminal().print(table(capacity))
        console.say("\n".join(sentences(capacity)))
    return int(capacity.needed is None)


async def _measured(settings: Settings, images: Sequence[bytes]) -> tuple[Replica, Rows]:
    bounds = Bounds.of(settings)
    http = await stage_times.http(images[0])
    backend = await asyncio.to_thread(client.load, settings, Future())
    try:
        decoders = cpu_info.decoding(settings.decode_threads)
        subject = Subject(backend, images, settings.views, bounds, decoders)
        return await stage_times.measure(subject, http), subject.rows
    finally:
        backend.close()


def table(capacity: Plan) -> Table:
    """Create the table of the predictions of a plan."""
    traffic = capacity.traffic
    within = f"{100 * SHARE:g} % of them within {1e3 * traffic.objective:g} ms"
    shown = console.table(
        f"{traffic.rate:g} requests a second, {within}",
        *("replicas", "busiest stage", "busy", "p50 ms", "p99 ms", "refused", "objective"),
    )
    for prediction in capacity.predictions:
        shown.add_row(*_row(prediction))
    return shown


def _row(prediction: Prediction) -> list[str]:
    busiest = max(prediction.utilisation, key=lambda stage: prediction.utilisation[stage])
    met = "met" if prediction.met else "missed"
    return [
        *(str(prediction.replicas), busiest, f"{100 * prediction.utilisation[busiest]:.0f} %"),
        *(_ms(prediction.p50), _ms(prediction.p99), f"{100 * prediction.refused:.1f} %", met),
    ]


def sentences(capacity: Plan) -> list[str]:
    """Summarise a plan."""
    alone = f"a request that is alone takes {_ms(capacity.alone)} ms"
    if capacity.needed is None:
        return [f"no number of replicas meets the objective: {alone}"]
    more = planner.step(capacity.enough)
    little = f"{more} more take off less than {100 * HELPS:g} % of p99"
    return [
        f"replicas needed: {capacity.needed}; {alone}",
        f"more than {capacity.enough} hardly help: {little}",
    ]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"
