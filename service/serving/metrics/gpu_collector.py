"""Prometheus collector of NVIDIA GPUs' memory and utilisation, by NVML.

These are all GPUs of this container or machine, whichever the model is on.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pynvml  # type: ignore[import-untyped]  # it has no stubs
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GPUCollector(Collector):
    """Collects a sample for each GPU, labelled by its number; none where there is no driver."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handles = _gpu_handles()  # pragma: no cover - needs a GPU

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Query every GPU; one that does not report a value (such as a MIG slice) is left out."""
        used, total, busy = (
            GaugeMetricFamily(f"googlenet_gpu_{name}", text, labels=["gpu"])
            for name, text in (
                ("memory_used_bytes", "Memory of a GPU in use by any process."),
                ("memory_total_bytes", "Memory of a GPU."),
                ("utilization_ratio", "Share of the last sampling period in which a GPU was busy."),
            )
        )
        for number, handle in enumerate(self._handles):  # pragma: no cover - needs a GPU
            gpu = [str(number)]
            with suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                used.add_metric(gpu, memory.used)
                total.add_metric(gpu, memory.total)
                busy.add_metric(gpu, pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        return [used, total, busy]


def _gpu_handles() -> list[Any]:  # pragma: no cover - needs a GPU
    count = pynvml.nvmlDeviceGetCount()
    return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
