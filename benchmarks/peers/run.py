"""Measure peers beside this service: `python benchmarks/peers/run.py PHOTOS`."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.peers import measuring, processes, report
from benchmarks.peers.deployments import OURS, SERVERS
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.measuring import Effort, Leg

_WIDTH = 120  # columns, where there is no terminal


def main() -> int:
    """Measure in rounds, all servers in turn within each; gives 1 if a server failed."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers end, too
    processes.adopt_orphans()
    console = Console(stderr=True)
    images = measuring.photos(given.photos)
    if not images:
        console.print(f"{given.photos} has no photos")
        return 2
    effort = Effort(given.seconds, given.connections)
    legs: list[Leg] = []
    failures: dict[str, str] = {}
    for number in range(given.rounds):
        for name, engine in _turns(given.peers, given.engine, number):
            console.print(f"round {number + 1}: {name}, {engine} engine")
            try:
                legs += measuring.measure(name, engine, images, effort, number)
            except Unavailable as error:
                failures[f"{name}, {engine} engine"] = str(error)
                console.print(f"  {error}", markup=False)
            if given.json:
                settings = {"rounds": given.rounds, "seconds": given.seconds}
                report.write(given.json, legs, failures, settings)
    _show(legs, failures)
    return int(bool(failures))


def _turns(peers: Sequence[str], engines: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Order the servers of a round; each begins elsewhere, so that none is always the first."""
    turns = [(OURS, "ours"), *((name, engine) for engine in engines for name in peers)]
    first = number % len(turns)
    return [*turns[first:], *turns[:first]]


def _show(legs: Sequence[Leg], failures: report.Failures) -> None:
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=_WIDTH)
    if legs:
        console.print(report.table(legs))
    for what, why in failures.items():
        console.print(f"{what}: {why}", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    peers = [name for name in SERVERS if name != OURS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos named by their label")
    parser.add_argument("--peers", type=_some(peers), default=peers, help=",".join(peers))
    parser.add_argument("--engine", type=_some(["ours", "eager"]), default=["ours", "eager"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--connections", type=_numbers, default=(1, 64))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    return parser


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names = text.split(",")
        if strange := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(known)}")
        return names

    return chosen


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
