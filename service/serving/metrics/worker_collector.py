"""Prometheus collector of the worker processes' memory, open files and CPU time."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


def resident(pid: int) -> int:
    """Return a process's resident bytes; 0 where it has ended or the system is not Linux."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class WorkerCollector(Collector):
    """Collects what `ProcessCollector` does for each process in `pids`, labelled by its model."""

    def __init__(self) -> None:
        self.pids: Mapping[str, int] = {}

    def collect(self) -> Iterable[Metric]:
        """Read each process's metrics; one that has ended is left out."""
        families: dict[str, Metric] = {}
        for model, pid in self.pids.items():
            collector = ProcessCollector("googlenet_worker", partial(int, pid), registry=None)
            for family in collector.collect():
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "model": model}
                    merged.add_sample(sample.name, labels, sample.value)
        return families.values()
