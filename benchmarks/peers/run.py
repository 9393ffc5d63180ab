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

_WIDTH = 120  # columns without a terminal


def main() -> int:
    """Measure all servers in turn, in rounds; returns 1 if a server failed."""
    arguments = _parser().parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # also stops the servers
    processes.adopt_orphans()
    console = Console(stderr=True)
    images = measuring.photos(arguments.photos)
    if not images:
        console.print(f"{arguments.photos} has no photos")
        return 2
    effort = Effort(arguments.seconds, arguments.connections)
    legs: list[Leg] = []
    failures: dict[str, str] = {}
    for number in range(arguments.rounds):
        for name, engine in _turns(arguments.peers, arguments.engine, number):
            console.print(f"round {number + 1}: {name}, {engine} engine")
            try:
                legs += measuring.measure(name, engine, images, effort, number)
            except Unavailable as error:
                failures[f"{name}, {engine} engine"] = str(error)
                console.print(f"  {error}", markup=False)
            if arguments.json:
                settings = {"rounds": arguments.rounds, "seconds": arguments.seconds}
                report.write(arguments.json, legs, failures, settings)
    _show(legs, failures)
    return int(bool(failures))


def _turns(peers: Sequence[str], engines: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Order the servers of a round, each round with another one first."""
    turns = [(OURS, "ours"), *((name, engine) for engine in engines for name in peers)]
    first = number % len(turns)
    return [*turns[first:], *turns[:first]]


def _show(legs: Sequence[Leg], failures: report.Failures) -> None:
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=_WIDTH)
    if legs:
        console.print(report.table(legs))
    for name, reason in failures.items():
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    peers = [name for name in SERVERS if name != OURS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder of photos named by their label")
    parser.add_argument("--peers", type=_subset(peers), default=peers, help=",".join(peers))
    parser.add_argument("--engine", type=_subset(["ours", "eager"]), default=["ours", "eager"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--connections", type=_numbers, default=(1, 64))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    return parser


def _subset(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
