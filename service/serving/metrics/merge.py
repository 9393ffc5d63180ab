"""Merge the metrics of several processes into those of one service."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

Families = Sequence[Metric]

_Key = tuple[str, tuple[tuple[str, str], ...]]
_KEPT = frozenset({"counter", "histogram", "summary"})  # of a process that has ended
_LEAST = frozenset({"googlenet_ready", "process_start_time_seconds"})


def merged(processes: Iterable[Families]) -> list[Metric]:
    """Add up the samples that have the same name and labels.

    Of versions and of GPUs, which every process reports alike, it is the largest; of readiness and
    of times of creation the least.
    """
    families: dict[str, _Merging] = {}
    for process in processes:
        for family in process:
            merging = families.setdefault(family.name, _Merging(family))
            for sample in family.samples:
                merging.add(sample)
    return [merging.family for merging in families.values()]


def kept(families: Families) -> list[Metric]:
    """Return what still counts of a process that has ended: no gauges."""
    return [family for family in families if family.type in _KEPT]


@dataclass(slots=True)
class _Merging:
    like: Metric
    samples: dict[_Key, Sample] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        key = sample.name, tuple(sorted(sample.labels.items()))
        if before := self.samples.get(key):
            value = _operation(sample.name)((before.value, sample.value))
            exemplar = sample.exemplar or before.exemplar
            sample = sample._replace(value=value, exemplar=exemplar)
        self.samples[key] = sample

    @property
    def family(self) -> Metric:
        family = Metric(self.like.name, self.like.documentation, self.like.type, self.like.unit)
        family.samples = [*self.samples.values()]
        return family


def _operation(name: str) -> Callable[[Iterable[float]], float]:
    if name in _LEAST or name.endswith("_created"):
        return min
    if name.endswith("_info") or name.startswith("googlenet_gpu_"):
        return max
    return sum
