"""The limits of this process's cgroups, of version 1 and 2: CPU and memory."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # where Linux mounts them

_V2 = ("", "unified")  # where version 2 is mounted below the root: alone, or beside version 1
_V1 = {"cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu"), "memory": ("memory",)}  # a controller of 1
_MEMORY = ("memory.max", "memory.limit_in_bytes")  # files of version 2 and 1


def cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many whole CPUs the quotas allow, rounded down; `sys.maxsize` without a quota."""
    return min(map(_quota, _folders("cpu", proc, cgroups)), default=sys.maxsize)


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the limit of memory in bytes; at least `sys.maxsize` less a page without a limit."""
    limits = (
        _bytes(folder / file) for folder in _folders("memory", proc, cgroups) for file in _MEMORY
    )
    return min(limits, default=sys.maxsize)


def _folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Find the folders of this process's cgroups and of all their ancestors, in both versions.

    A container without a cgroup namespace sees the host's path in `/proc/self/cgroup`, and its
    own cgroup as the root of the mount. So the root is always one of the folders, and missing
    folders have no limit.
    """
    for mounts, path in _memberships(controller, proc):
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:  # a cgroup outside this namespace is not visible
            inside = PurePosixPath()
        for mount in mounts:
            yield from (cgroups / mount / folder for folder in (inside, *inside.parents))


def _memberships(controller: str, proc: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Read `/proc/self/cgroup`: possible mounts and the path of each cgroup with the controller."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if not controllers:
            yield _V2, path
        elif controller in controllers.split(","):
            yield _V1[controller], path


def _quota(folder: Path) -> int:
    """Read how many whole CPUs one cgroup allows; `sys.maxsize` where it has no quota."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return sys.maxsize if quota == "max" or int(quota) < 0 else int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return sys.maxsize


def _bytes(file: Path) -> int:
    """Read a limit of memory; `sys.maxsize` for `max` or without the file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return sys.maxsize
