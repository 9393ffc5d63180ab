"""The bench command: measure a service."""

import asyncio
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from service.bench import measure
from service.bench.report import tables
from service.cli import console
from service.settings import Settings


def bench(settings: Settings, given: dict[str, Any]) -> int:
    """Measure a new service, or the one at `url`, and print the report."""
    options = measure.Options(
        seconds=given["seconds"],
        rounds=given["rounds"],
        requests=given["requests"],
        slo=given["slo"] / 1000,
        deadline=given["deadline"] / 1000,
    )
    folder: Path = given["folder"]
    log = functools.partial(console.say, stderr=True)
    report = asyncio.run(
        measure.other(given["url"], folder, options, log)
        if given["url"]
        else measure.own(settings, folder, options, log)
    )
    if given["json"]:
        console.say(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        console.terminal().print(tables(report))
    return 0
