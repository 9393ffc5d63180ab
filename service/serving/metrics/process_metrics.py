"""Metrics of the process that serves HTTP: libraries, threads, memory, event loop, GPUs."""

import math
import platform
from importlib import metadata
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from service.serving.metrics.gpu_collector import GPUCollector
from service.serving.metrics.labels import LATENCY

_LIBRARIES = ("openvino", "torch")  # that compute, one or the other
_LAG = (*LATENCY[:10], 0.1, 0.25, 0.5, 1.0)


class ProcessMetrics:
    """The versions that run, event-loop lag, and the collectors of processes and GPUs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(GPUCollector())
        self._lag = Histogram(
            "googlenet_event_loop_lag_seconds",
            "How late a timer fires in the process that serves HTTP.",
            buckets=_LAG,
            registry=registry,
        )
        Gauge(
            "googlenet_build_info",
            "1, with the versions that run.",
            ["version", "python", *_LIBRARIES],
            registry=registry,
        ).labels(
            metadata.version("googlenet-service"),
            platform.python_version(),
            *map(_version, _LIBRARIES),
        ).set(1)

    def lag(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._lag.observe(seconds)


def threads(pid: int) -> float:
    """Count a process's threads; NaN where it has ended or the system is not Linux."""
    try:
        return len([*Path(f"/proc/{pid}/task").iterdir()])
    except OSError:
        return math.nan


def _version(library: str) -> str:
    """Return the version of a library, empty where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
