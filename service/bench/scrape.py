"""The service's own `/metrics`: the time of each stage, memory, CPU time."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from service.bench.client import Client
from service.bench.load import OK
from service.errors import BenchError
from service.serving.metrics.labels import INTERACTIVE, STAGES

Series = Mapping[str, float]

_MEMORY = ("process_resident_memory_bytes", "googlenet_worker_process_resident_memory_bytes")
_REQUEST = "googlenet_request_duration_seconds"
_STAGE = "googlenet_stage_duration_seconds"
_CLASSIFIED = {"route": "/classify", "code": "200", "priority": INTERACTIVE}


async def scrape(client: Client) -> Series:
    """Read every series; raises `BenchError` without a response."""
    reply = await client.ask(client.target.get("/metrics"))
    if reply.status != OK:
        raise BenchError("no response from /metrics")
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def _name(name: str, labels: Mapping[str, str]) -> str:
    return name + repr(sorted(labels.items()))


def memory(series: Series) -> float:
    """Return the resident memory of the service's processes, in bytes."""
    return sum(value for name, value in series.items() if name.startswith(_MEMORY))


def processor(series: Series) -> float:
    """Return the CPU seconds of the HTTP process."""
    return series[_name("process_cpu_seconds_total", {})]


def images(series: Series) -> float:
    """Return how many images were classified."""
    return sum(
        value
        for name, value in series.items()
        if name.startswith("googlenet_images_total") and "('outcome', 'ok')" in name
    )


def stages(before: Series, after: Series) -> dict[str, float]:
    """Return the mean seconds of a request's stages between two scrapes, in their order.

    `answer` is the rest of the request's time: admission, ranking, JSON, sending.
    """

    def increase(name: str, labels: Mapping[str, str]) -> float:
        series = _name(name, labels)
        return after.get(series, 0.0) - before.get(series, 0.0)

    requests = increase(_REQUEST + "_count", _CLASSIFIED)
    seconds = {
        stage: increase(_STAGE + "_sum", {"stage": stage, "priority": INTERACTIVE})
        / max(requests, 1)
        for stage in STAGES
    }
    total = increase(_REQUEST + "_sum", _CLASSIFIED) / max(requests, 1)
    return {**seconds, "answer": total - sum(seconds.values())}
