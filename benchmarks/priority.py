"""Latency of interactive requests beside bulk requests, with and without `Priority: u=7`.

    python benchmarks/priority.py PHOTOS --model bvlc_googlenet --rate 15 --connections 32

Each round sends an open loop of single-view requests to one service: alone, beside a closed loop
of background requests, and beside the same loop without the priority. The medians of the rounds
are printed as JSON: latencies in milliseconds, the closed loop's images a second.
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
LOADS = {"alone": None, "beside bulk": {"Priority": "u=7"}, "beside others": {}}


async def measure_round(
    client: Client, images: Sequence[bytes], arguments: argparse.Namespace
) -> dict[str, float]:
    """Measure one round."""
    figures: dict[str, float] = {}
    path = "/classify?views=single"
    requests = [client.target.post(path, image, KIND) for image in images]
    for name, headers in LOADS.items():
        interactive = load.open_loop(
            client, requests, rate=arguments.rate, seconds=arguments.seconds
        )
        if headers is None:
            run = await interactive
        else:
            bulk_requests = [client.target.post(path, image, KIND | headers) for image in images]
            bulk = load.closed_loop(
                client, bulk_requests, connections=arguments.connections, seconds=arguments.seconds
            )
            run, background = await asyncio.gather(interactive, bulk)
            figures[f"{name}, bulk"] = background.rate
        for share in (0.5, 0.99):
            figures[f"{name}, p{100 * share:.0f}"] = 1000 * load.quantile(run.accepted, share)
        figures[f"{name}, refused"] = len(run.refused)
    return figures


async def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the medians."""
    images = photos.read(arguments.photos)
    store = ["--model-store", str(arguments.model_store)] if arguments.model_store else []
    rounds = defaultdict(list)
    async with serving(["--model", arguments.model, *store]) as started:
        for _ in range(arguments.rounds):
            for name, value in (await measure_round(started.client, images, arguments)).items():
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
