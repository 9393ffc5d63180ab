"""What the machine has: versions, CPUs, GPUs, memory, optional packages."""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata

from service import cgroups, cpu_info
from service.cli.doctor.choice import Choice
from service.cli.doctor.finding import Finding, Problem
from service.engine import gpu_info
from service.models import pytorch
from service.server import process_count
from service.serving.metrics.worker_collector import resident
from service.settings import Settings

EXTRAS: Mapping[str, str] = {  # by extra, the package by which it is known to be installed
    "torch": "torch",
    "grpc": "grpcio",
    "client": "httpx2",
    "heic": "pillow-heif",
    "trace": "opentelemetry-sdk",
    "bulk": "pyarrow",
    "ray": "ray",
    "train": "matplotlib",
    "quantize": "nncf",
}

_GIBIBYTE = 1 << 30


def system() -> Finding:
    """Name the versions."""
    ours = metadata.version("googlenet-service")
    versions = f"googlenet-service {ours}, Python {platform.python_version()}"
    return Finding("system", [f"{versions}, {platform.system()} on {platform.machine()}"])


def cpu() -> Finding:
    """Count the CPUs, and list their instructions that matter."""
    count, quota = cpu_info.affinity(), cgroups.cpus()
    limit = f", {max(1, quota)} by the quota of the cgroup" if quota < count else ""
    lines = [
        f"{count} of {cpu_info.model_name()}{limit}",
        f"with {', '.join(cpu_info.features()) or 'no instructions for networks'}",
    ]
    problems = []
    if quota == 0:
        sentence = (
            "the quota of the cgroup is less than one CPU, so that batches stop in the middle"
        )
        problems.append(Problem(sentence, "set the limit to a whole number of CPUs"))
    return Finding("CPU", lines, problems)


def gpu(settings: Settings, chosen: Sequence[Choice]) -> Finding:
    """Count the GPUs, and whether `auto` uses them."""
    count = gpu_info.count()
    problems = []
    if count and settings.device == "auto" and any(c.ensemble.device == "cpu" for c in chosen):
        sentence = f"serve would compute on the CPU, though there are GPUs: {count}"
        remedy = f"install PyTorch for CUDA ({pytorch.INSTALL}), or choose --device cpu"
        problems.append(Problem(sentence, remedy))
    return Finding("GPU", [str(count or "none")], problems)


def memory(settings: Settings, chosen: Sequence[Choice]) -> Finding:
    """Compare the memory that the models and the limits of queues add up to with what there is."""
    machine, limit = _memory_bytes(), cgroups.memory()
    most = min(machine, limit)
    line = f"{_gib(machine)}, limit of the cgroup: {_gib(limit) if limit < machine else 'none'}"
    if not chosen:
        return Finding("memory", [line])
    of_each = settings.max_queue_bytes + settings.cache_bytes
    count = process_count.resolved(settings).api_processes
    python = resident(os.getpid()) * (count + 2 if count > 1 else 1)  # a supervisor and a core, too
    workers = sum(choice.nbytes for choice in chosen)
    needed = python + workers + settings.max_inflight_body_bytes + len(chosen) * of_each
    problems = []
    if needed > most:
        sentence = f"serve needs {_gib(needed)} with its queues full, and may use {_gib(most)}"
        remedy = "raise the limit, or lower --max-queue-bytes or --max-inflight-body-bytes"
        problems.append(Problem(sentence, remedy))
    return Finding("memory", [line, f"serve needs {_gib(needed)} with its queues full"], problems)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(nbytes: int) -> str:
    return f"{nbytes / _GIBIBYTE:.1f} GiB"


def packages() -> Finding:
    """List the extras that are installed, and those that are not."""
    installed = {extra for extra, package in EXTRAS.items() if _is_installed(package)}
    absent = ", ".join(extra for extra in EXTRAS if extra not in installed)
    present = ", ".join(extra for extra in EXTRAS if extra in installed)
    return Finding("extras", [f"installed: {present or 'none'}", f"absent: {absent or 'none'}"])


def _is_installed(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False
