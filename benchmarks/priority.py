"""What callers notice of bulk beside them, with and without `Priority: u=7`, measured in turn.

    python benchmarks/priority.py PHOTOS --model bvlc_googlenet --rate 15 --connections 32

One service; each round asks it for single views at a mean rate, at random moments: alone, beside
a closed loop of bulk that says so, and beside the same loop that does not. The medians of the
rounds are printed as JSON: latencies in milliseconds, bulk's images a second.
"""

import argparse
import asyncio
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from service.bench import load, photos
from service.bench.client import Client
from service.bench.process import serving
from service.cli import console

KIND = {"Content-Type": "image/jpeg"}
BESIDE = {"alone": None, "beside bulk": {"Priority": "u=7"}, "beside others": {}}


async def measured(
    client: Client, images: Sequence[bytes], given: argparse.Namespace
) -> dict[str, float]:
    """Do one round."""
    found: dict[str, float] = {}
    path = "/classify?views=single"
    mine = [client.target.post(path, image, KIND) for image in images]
    for name, headers in BESIDE.items():
        callers = load.paced(client, mine, rate=given.rate, seconds=given.seconds)
        if headers is None:
            run = await callers
        else:
            theirs = [client.target.post(path, one, KIND | headers) for one in images]
            flood = load.closed(
                client, theirs, connections=given.connections, seconds=given.seconds
            )
            run, background = await asyncio.gather(callers, flood)
            found[f"{name}, bulk"] = background.rate
        for share in (0.5, 0.99):
            found[f"{name}, p{100 * share:.0f}"] = 1000 * load.quantile(run.accepted, share)
        found[f"{name}, refused"] = len(run.refused)
    return found


async def main(given: argparse.Namespace) -> None:
    """Measure, and print what came out."""
    images = photos.read(given.photos)
    store = ["--model-store", str(given.store)] if given.store else []
    rounds = defaultdict(list)
    async with serving(["--model", given.model, *store]) as started:
        for _ in range(given.rounds):
            for name, value in (await measured(started.client, images, given)).items():
                rounds[name].append(value)
    medians = {name: round(statistics.median(values), 1) for name, values in rounds.items()}
    console.say(json.dumps(medians, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="bvlc_googlenet")
    parser.add_argument("--model-store", type=Path)
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second (default: 15)")
    parser.add_argument("--connections", type=int, default=32, help="of the loop (default: 32)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run (default: 15)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    asyncio.run(main(parser.parse_args()))
