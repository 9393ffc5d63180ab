"""The CPUs of this process: their number, by affinity and cgroup quotas, and their kind."""

import os
import platform
from pathlib import Path

from service import cgroups

_FEATURES = (  # instructions that networks run faster with, by Linux's names on x86 and Arm
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "i8mm", "bf16"),
)


def available(proc: Path = cgroups.PROC, mount: Path = cgroups.CGROUPS) -> int:
    """Count the CPUs this process may use: those of its affinity, within its quota, at least 1.

    A quota of part of a CPU is rounded down. `proc` and `mount` are `service.cgroups`'.
    """
    return max(1, min(affinity(), cgroups.cpus(proc, mount)))


def affinity() -> int:
    """Count the CPUs that the system may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decoding(threads: int) -> int:
    """Return the number of threads that decode images: the setting, or one a CPU if it is 0."""
    return threads or available()


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """List the CPU's instructions that networks run faster with, by Linux's names of them."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return []
    return [name for name in _FEATURES if name in words]


def multiply_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has bfloat16 instructions."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features(cpuinfo))


def model_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor on Linux, or its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
