"""The CPUs of this process: their number, by affinity and cgroup quotas, and their kind."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V2 = ("", "unified")  # where version 2 is mounted below the root: alone, or beside version 1
_V1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # the same for version 1's CPU controller


def available(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the CPUs this process may use: those of its affinity, within its quota, at least 1.

    A quota of part of a CPU is rounded down. `proc` and `cgroups` are where Linux mounts them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(affinity or 1, *map(_quota, _folders(proc, cgroups)), sys.maxsize))


def decoding(threads: int) -> int:
    """Return the number of threads that decode images: the setting, or one a CPU if it is 0."""
    return threads or available()


def _folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Find the folders of this process's cgroups and of all their ancestors, in both versions.

    A container without a cgroup namespace sees the host's path in `/proc/self/cgroup`, and its
    own cgroup as the root of the mount. So the root is always one of the folders, and missing
    folders have no quota.
    """
    for mounts, path in _memberships(proc):
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:  # a cgroup outside this namespace is not visible
            inside = PurePosixPath()
        for mount in mounts:
            yield from (cgroups / mount / folder for folder in (inside, *inside.parents))


def _memberships(proc: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Read `/proc/self/cgroup`: possible mounts and the path of each cgroup that limits CPU."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if not controllers:
            yield _V2, path
        elif "cpu" in controllers.split(","):
            yield _V1, path


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


def multiply_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has bfloat16 instructions, by Linux's names of them."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def model_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor on Linux, or its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
