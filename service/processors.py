"""The processors: how many this process may use."""

import os
import platform
import sys
from pathlib import Path


def available() -> int:
    """Count the processors that this process may use: those it runs on, within its quota."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(present or 1, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def decoding(chosen: int) -> int:
    """Give how many threads decode pictures: so many as were chosen, or, for 0, one a core."""
    return chosen or available()


def _quota(cpu_max: Path) -> int:
    """Read how many processors a container may use (Linux, control groups version 2)."""
    try:
        quota, period = cpu_max.read_text().split()
        return sys.maxsize if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return sys.maxsize


def multiply_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether they have instructions for bfloat16, as far as the system says so (Linux)."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def model_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor, as far as the system says so (Linux)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
