"""A thousand requests of all shapes while processes are killed; see `soak_kills.py`."""

import asyncio
from pathlib import Path

import pytest
import soak_kills
from soak_requests import SHAPES

REQUESTS = 1000


@pytest.mark.slow
def test_no_request_is_lost_or_mixed_up_while_processes_are_killed(shared: Path) -> None:
    images = soak_kills.photos(shared / "photos")
    with soak_kills.started() as target:
        figures = asyncio.run(soak_kills.soak(target, images, REQUESTS, seed=0))
    assert figures["wrong"] == []
    assert figures["miscounted"] == {}
    assert figures["requests"] == REQUESTS
    assert sum(figures["killed"].values()) == len(soak_kills.victims(REQUESTS))
    assert figures["by shape"].keys() == {*(one.__name__ for one in SHAPES), "leave", "rpc"}
    assert figures["photos"] == soak_kills.PHOTOS // 4
    assert figures["by status"]["200"] > REQUESTS / 2
    start, _, end = figures["memory"]
    assert end < 2 * start
