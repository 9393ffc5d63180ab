"""What processes use, as Linux counts it: CPU time, context switches, memory."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from service.serving.metrics import worker_collector

_USER, _SYSTEM = 11, 12  # fields of /proc/PID/stat after the name
_SWITCHES = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far, and its resident memory in bytes."""

    cpu_seconds: float
    switches: int  # context switches of all its threads
    nbytes: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read the usage of a process; raises `OSError` if it has ended."""
        process = Path(f"/proc/{pid}")
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[_USER]) + int(fields[_SYSTEM])
        cpu_seconds = ticks / os.sysconf("SC_CLK_TCK")
        return cls(cpu_seconds, sum(_switches(process)), worker_collector.resident(pid))


def _switches(process: Path) -> Iterator[int]:
    for status in process.glob("task/*/status"):
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in _SWITCHES:
                yield int(value)


def by_process(pid: int) -> dict[str, Usage]:
    """Return the usage of a service's listening process and of its worker; {} without Linux.

    The service must have one API process.
    """
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        return {}
    workers = [int(child) for child in children.read_text().split()]
    return {"http": Usage.of(pid), "worker": Usage.of(workers[0])}


@dataclass(frozen=True, slots=True)
class PerImage:
    """What an image takes of a process, and the process's resident memory in bytes."""

    cpu_seconds: float
    switches: float
    nbytes: int


def per_image(
    before: Mapping[str, Usage], after: Mapping[str, Usage], images: float
) -> dict[str, PerImage]:
    """Divide what was used between two moments by the images of that time."""
    return {
        name: PerImage(
            (used.cpu_seconds - before[name].cpu_seconds) / images,
            (used.switches - before[name].switches) / images,
            used.nbytes,
        )
        for name, used in after.items()
    }
