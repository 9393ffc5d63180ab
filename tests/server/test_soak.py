"""A soak in short: all its traffic, attacks and faults for some seconds; see `soak.py`."""

import asyncio
import json
from pathlib import Path

import pytest
import soak

SECONDS = 12.0
PHOTOS = 40


@pytest.mark.slow
def test_a_short_soak_drops_and_mixes_up_no_requests(shared: Path) -> None:
    images = soak.photos(shared / "photos", PHOTOS)
    with soak.serving(["--model", "digits", "--seed", "0"]) as (port, process):
        soaked = asyncio.run(soak.soak(port, images, SECONDS, seed=0))
        process.terminate()
        assert process.stdout is not None
        found = soak.verdict(soaked, json.loads(process.stdout.read()))
    assert soaked.wrongs == []
    assert found["lost"] == found["wrong answers"] == found["undocumented answers"] == 0
    assert found["files grown"] <= 0
    assert len(soaked.known) >= PHOTOS / 4
    for kind in ("right answers", "broken images", "callers that left", "attacks", "floods"):
        assert found[kind], kind
    assert sum(found["faults injected"].values())
