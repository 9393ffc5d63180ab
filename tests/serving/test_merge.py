"""Merged metrics: sums over processes, also of ones that have ended."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from service.serving.metrics import merge


def process(count: int, ready: int, version: str = "1") -> list[Metric]:
    """Give the metrics of a process that has counted so much."""
    registry = CollectorRegistry()
    Counter("requests", "Requests.", ["code"], registry=registry).labels("200").inc(count)
    Histogram("seconds", "Seconds.", buckets=[1], registry=registry).observe(count, {"trace": "a"})
    Gauge("connections", "Connections.", registry=registry).set(count)
    Gauge("googlenet_ready", "Ready.", registry=registry).set(ready)
    Gauge("process_start_time_seconds", "Start.", registry=registry).set(1000 + count)
    Gauge("googlenet_gpu_memory_used_bytes", "Memory.", registry=registry).set(5)
    Gauge("build_info", "Build.", ["version"], registry=registry).labels(version).set(1)
    return [*registry.collect()]


def values(families: list[Metric]) -> dict[str, float]:
    """Give each sample's value by its name and labels."""
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sample.labels.items()): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_samples_are_added_up_but_what_all_processes_report_alike() -> None:
    assert values(merge.merged([process(1, 1), process(3, 0), process(5, 1, "2")])) == {
        "requests_total,code=200": 9,
        "seconds_bucket,le=1.0": 1,
        "seconds_bucket,le=+Inf": 3,
        "seconds_count": 3,
        "seconds_sum": 9,
        "connections": 9,
        "googlenet_ready": 0,
        "process_start_time_seconds": 1001,
        "googlenet_gpu_memory_used_bytes": 5,
        "build_info,version=1": 1,
        "build_info,version=2": 1,
    }


def test_of_an_ended_process_counts_stay_and_gauges_go() -> None:
    ended = merge.kept(process(4, 0))
    names = {family.name for family in ended}
    assert names == {"requests", "seconds"}
    assert values(merge.merged([ended, process(1, 1)]))["requests_total,code=200"] == 5


@pytest.mark.parametrize("count", [1, 3])
def test_the_encoder_takes_what_is_merged(count: int) -> None:
    class Merged:
        def collect(self) -> list[Metric]:
            return merge.merged([process(1, 1)] * count)

    assert f'requests_total{{code="200"}} {count}.0' in generate_latest(Merged()).decode()
