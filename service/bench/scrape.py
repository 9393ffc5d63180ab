"""What the service says of itself in `/metrics`: where the time went, how much memory it has."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from service.bench.client import Client
from service.bench.load import OK
from service.errors import BenchError
from service.serving.metrics.metrics import INTERACTIVE, STAGES

Series = Mapping[str, float]

_MEMORY = ("process_resident_memory_bytes", "googlenet_worker_process_resident_memory_bytes")
_REQUEST = "googlenet_request_duration_seconds"
_STAGE = "googlenet_stage_duration_seconds"
_OURS = {"route": "/classify", "code": "200", "priority": INTERACTIVE}


async def scrape(client: Client) -> Series:
    """Read every series; raises `BenchError` if there is no answer."""
    reply = await client.ask(client.target.get("/metrics"))
    if reply.status != OK:
        raise BenchError("there is no answer from /metrics")
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def _name(name: str, labels: Mapping[str, str]) -> str:
    return name + repr(sorted(labels.items()))


def memory(series: Series) -> float:
    """Give the bytes of memory the service's processes have."""
    return sum(value for name, value in series.items() if name.startswith(_MEMORY))


def processor(series: Series) -> float:
    """Give the seconds that the process of HTTP has had of a processor."""
    return series[_name("process_cpu_seconds_total", {})]


def stages(before: Series, after: Series) -> dict[str, float]:
    """Give the mean seconds of a request's stages between two scrapes, in their order.

    `answer` is what the request took beyond the others: admission, ranking, JSON, sending.
    """

    def grown(name: str, labels: Mapping[str, str]) -> float:
        series = _name(name, labels)
        return after.get(series, 0.0) - before.get(series, 0.0)

    requests = grown(_REQUEST + "_count", _OURS)
    found = {
        stage: grown(_STAGE + "_sum", {"stage": stage, "priority": INTERACTIVE}) / max(requests, 1)
        for stage in STAGES
    }
    whole = grown(_REQUEST + "_sum", _OURS) / max(requests, 1)
    return {**found, "answer": whole - sum(found.values())}
