"""The processes that classify, as the system knows them: memory, files and time of each."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


def resident(pid: int) -> int:
    """Give a process's resident bytes; 0 where it has ended or Linux is not there to tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class WorkerCollector(Collector):
    """Gives what `ProcessCollector` does of each process in `pids`, labelled by its model."""

    def __init__(self) -> None:
        self.pids: Mapping[str, int] = {}

    def collect(self) -> Iterable[Metric]:
        """Ask the system; a process that has ended is left out."""
        found: dict[str, Metric] = {}
        for model, pid in self.pids.items():
            of_one = ProcessCollector("googlenet_worker", partial(int, pid), registry=None)
            for family in of_one.collect():
                same = found.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "model": model}
                    same.add_sample(sample.name, labels, sample.value)
        return found.values()
