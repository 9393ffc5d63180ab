"""The rate of `classify --out` beside the limit of this machine, measured in turn.

    python benchmarks/bulk.py PHOTOS --model bvlc_googlenet --views single --images 2000

Each round measures the limit (`service.bench.throughput_limit`: decoding and inference alone) and
then the command, in a process of its own, on links to the photos. The command's rate is the one
that it prints, without loading the model. The medians of both, and of the rounds' ratios, are
printed as JSON.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from service.bench.throughput_limit import Limit
from service.cli import console
from service.imaging import image_folder
from service.settings import Settings

SUMMARY = re.compile(r"(\d+) images, 0 failures, [\d.]+ s, ([\d.]+) images a second")


def links(photos: Path, folder: Path, images: int) -> None:
    """Link to a folder's photos in turn, until there are `images` links."""
    files = [path.resolve() for path in image_folder.images(image_folder.files(photos))]
    for number in range(images):
        file = files[number % len(files)]
        (folder / f"{number:07}{file.suffix}").symlink_to(file)


def command_rate(settings: Settings, folder: Path, out: Path) -> float:
    """Run the command; returns the images a second that it prints."""
    chosen = settings.model_dump(exclude_unset=True)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    command = [sys.executable, "-m", "service", "classify", str(folder), "--out", str(out)]
    done = subprocess.run(  # noqa: S603 - this program
        [*command, *options], capture_output=True, text=True, check=True
    )
    out.unlink()
    summary = SUMMARY.search(done.stderr)
    assert summary, done.stderr  # noqa: S101 - a benchmark
    return float(summary[2])


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of each run (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the limit (default: 10)")
    parser.add_argument("--format", choices=["jsonl", "csv", "parquet"], default="jsonl")
    parser.add_argument("--model", default="bvlc_googlenet")
    parser.add_argument("--views", default="single")
    parser.add_argument("--model-store", type=Path)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("model", "views", "precision")}
    settings = Settings(
        **chosen, **({"model_store": arguments.model_store} if arguments.model_store else {})
    )
    limits, rates = [], []
    with tempfile.TemporaryDirectory() as temporary, Limit(settings, arguments.photos) as limit:
        folder = Path(temporary) / "images"
        folder.mkdir()
        links(arguments.photos, folder, arguments.images)
        limit.rate(settings.views, 1.0)  # loads the model
        for _ in range(arguments.rounds):
            limits.append(limit.rate(settings.views, arguments.seconds).images)
            rates.append(
                command_rate(settings, folder, Path(temporary) / f"out.{arguments.format}")
            )
            console.say(f"limit {limits[-1]:.1f}, command {rates[-1]:.1f}", stderr=True)
    ratios = [rate / limit for rate, limit in zip(rates, limits, strict=True)]
    figures = {"limit": limits, "command": rates, "ratio": ratios}
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    console.say(json.dumps({"images": arguments.images, "format": arguments.format, **medians}))


if __name__ == "__main__":
    main()
