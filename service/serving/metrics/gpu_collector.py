"""NVIDIA's GPUs as a Prometheus collector: memory and utilisation, by NVIDIA's own library.

What the library sees is what is in this container or machine, whichever GPUs the model is on.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pynvml  # type: ignore[import-untyped]  # it has no stubs
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GPUCollector(Collector):
    """Gives a sample for each GPU, labelled by its number; none where there is no driver."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handles = _found()  # pragma: no cover - needs a GPU

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Ask every GPU; one that does not tell something (as a share of one) is left out."""
        used, total, busy = (
            GaugeMetricFamily(f"googlenet_gpu_{name}", text, labels=["gpu"])
            for name, text in (
                ("memory_used_bytes", "Memory of a GPU in use, by whatever process."),
                ("memory_total_bytes", "Memory of a GPU."),
                ("utilization_ratio", "Share of the last moments in which a GPU was at work."),
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


def _found() -> list[Any]:  # pragma: no cover - needs a GPU
    count = pynvml.nvmlDeviceGetCount()
    return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
