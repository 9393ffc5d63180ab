"""The processors: how many this process may use."""

import os
import sys
from pathlib import Path


def available() -> int:
    """Count the processors that this process may use: those it runs on, within its quota."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(present or 1, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(cpu_max: Path) -> int:
    """Read how many processors a container may use (Linux, control groups version 2)."""
    try:
        quota, period = cpu_max.read_text().split()
        return sys.maxsize if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return sys.maxsize
