"""The service's metrics: every name, type and label, in a registry of their own.

Names follow Prometheus's conventions: one prefix, base units, `_total` for counters. Label
values come from closed sets, and what can be told beforehand starts at zero, so that `rate()`
sees the first event.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from itertools import product
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from service.errors import ServiceError
from service.imaging import crops
from service.scheduling.cost_model import Key
from service.scheduling.types import Backlog, BatchReport, DropReport, RestartReport
from service.serving.backend import Backend
from service.serving.metrics.gpu_collector import GPUCollector
from service.serving.metrics.worker_collector import WorkerCollector

LATENCY = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
LAG = (*LATENCY[:10], 0.1, 0.25, 0.5, 1.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CALLS = ("admitted", "rate_limited")  # what becomes of a request that has a key
DISTANCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SHADOW = ("agreed", "differed", "failed", "skipped")  # what becomes of what a candidate is asked
_LIBRARIES = ("openvino", "torch")  # that compute, one or the other
STAGES = ("upload", "decode", "queue", "inference")
INTERACTIVE, BACKGROUND = (
    "interactive",
    "background",
)  # priorities: who lets others pass is no measure of delay


class Metrics:
    """Series that reports and gauges are turned into; `registry` is what is scraped."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(GPUCollector())
        self._served: dict[str, Backend] = {}  # by model
        self._workers = WorkerCollector()
        registry.register(self._workers)

        self._requests = Counter(
            "googlenet_requests",
            "HTTP requests answered, by route template, method, status and priority.",
            ["route", "method", "code", "priority"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "googlenet_request_duration_seconds",
            "From a request's first byte here to its last byte out.",
            ["route", "code", "priority"],
            buckets=LATENCY,
            registry=registry,
        )
        self._in_flight = Gauge(
            "googlenet_requests_in_flight", "HTTP requests being answered.", registry=registry
        )
        self._connections = Gauge("googlenet_connections", "Connections open.", registry=registry)
        self._closed = Counter(
            "googlenet_connections_closed",
            "Connections closed without an answer: idle, evicted, silent, stalled, or too many.",
            ["reason"],
            registry=registry,
        )
        self._stages = Histogram(
            "googlenet_stage_duration_seconds",
            "Where a classification's time goes; a stage of a request or of one of its images.",
            ["stage", "priority"],
            buckets=LATENCY,
            registry=registry,
        )
        self._images = Counter(
            "googlenet_images",
            "Images by views asked for and outcome: ok, or the code of the error.",
            ["views", "outcome"],
            registry=registry,
        )
        self._rejected = Counter(
            "googlenet_rejected",
            "Requests and images refused or failed, by the code of the error.",
            ["reason", "priority"],
            registry=registry,
        )
        self._key_requests = Counter(
            "googlenet_key_requests",
            "Requests with an API key, by its name: admitted, or over its limits (rate_limited).",
            ["key", "outcome"],
            registry=registry,
        )
        self._callers: frozenset[str] = frozenset()  # names of the keys there are
        self._dropped = Counter(
            "googlenet_cancelled",
            "Jobs that left without an answer: late or cancelled, while queued or in a batch.",
            ["why", "where"],
            registry=registry,
        )
        self._queue_wait = Histogram(
            "googlenet_queue_wait_seconds",
            "From a job's submission until its first row runs.",
            ["priority"],
            buckets=LATENCY,
            registry=registry,
        )
        self._batches = Counter(
            "googlenet_batches",
            "Batches run, by why they had their size: full, drained queue, or a deadline.",
            ["reason"],
            registry=registry,
        )
        self._batch_failures = Counter(
            "googlenet_batch_failures", "Batches that the device failed on.", registry=registry
        )
        self._batch_rows = Histogram(
            "googlenet_batch_rows", "Rows in a batch.", buckets=ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "googlenet_batch_duration_seconds",
            "A device's time for a batch.",
            ["side"],
            buckets=LATENCY,
            registry=registry,
        )
        self._padding = Counter(
            "googlenet_batch_padding_rows", "Rows run for nobody.", registry=registry
        )
        self._queue_rows = Gauge(
            "googlenet_queue_rows", "Rows that wait or are being decoded.", registry=registry
        )
        self._queue_bulk_rows = Gauge(
            "googlenet_queue_background_rows",
            "Of the rows that wait, those of requests that let others pass.",
            registry=registry,
        )
        self._queue_bytes = Gauge(
            "googlenet_queue_bytes", "Bytes of the images that wait.", registry=registry
        )
        self._cache_hits = Counter(
            "googlenet_cache_hits",
            "Images answered from the cache; they are among those that are ok.",
            registry=registry,
        )
        self._cache_bytes = Gauge(
            "googlenet_cache_bytes", "Bytes of answers that are kept.", registry=registry
        )
        self._predicted_wait = Gauge(
            "googlenet_queue_predicted_seconds",
            "Predicted seconds until all accepted work is done, but that which lets others pass.",
            registry=registry,
        )
        self._capacity = Gauge(
            "googlenet_capacity_rows_per_second",
            "Most rows a second that all devices compute, by the time their batches took.",
            ["model", "member", "side"],
            registry=registry,
        )
        self._lag = Histogram(
            "googlenet_event_loop_lag_seconds",
            "How late a timer of the process that serves HTTP comes.",
            buckets=LAG,
            registry=registry,
        )
        self._threads = Gauge(
            "googlenet_process_threads",
            "Threads of the process that serves HTTP and of the workers.",
            ["process"],
            registry=registry,
        )
        self._threads.labels("http").set_function(lambda: _threads(os.getpid()))
        self._heartbeat = Gauge(
            "googlenet_worker_last_heartbeat_timestamp_seconds",
            "When the device last was idle or was asked for what it is at.",
            registry=registry,
        )
        self._ready = Gauge(
            "googlenet_ready", "1 if the readiness probe succeeds, else 0.", registry=registry
        )
        self._model = Gauge(
            "googlenet_model_info",
            "1 for each member of each model served.",
            ["model", "name", "version", "sha256", "device", "precision"],
            registry=registry,
        )
        self._shadow = Counter(
            "googlenet_shadow_images",
            "Images a candidate was asked for, by its first label beside the default's.",
            ["outcome"],
            registry=registry,
        )
        self._shadow_distance = Histogram(
            "googlenet_shadow_distance",
            "The most by which a candidate's probability of the default's labels differs.",
            buckets=DISTANCES,
            registry=registry,
        )
        self._load_seconds = Gauge(
            "googlenet_model_load_seconds", "Seconds to load a model.", ["model"], registry=registry
        )
        self._warmup_seconds = Gauge(
            "googlenet_model_warmup_seconds",
            "Of the load, seconds to warm up and time batches.",
            ["model"],
            registry=registry,
        )
        self._restarts = Counter(
            "googlenet_worker_restarts",
            "Times that a model's worker had ended by itself and was started again.",
            ["model"],
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
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        zeros: dict[Counter | Histogram, Iterable[tuple[object, ...]]] = {
            self._stages: product(STAGES, (INTERACTIVE, BACKGROUND)),
            self._closed: zip(("idle", "evicted", "silent", "stalled", "full")),
            self._rejected: ((error.code, INTERACTIVE) for error in _leaves(ServiceError)),
            self._images: ((plan, "ok") for plan in crops.NAMES),
            self._dropped: product(("late", "cancelled"), ("queue", "batch")),
            self._queue_wait: zip((INTERACTIVE, BACKGROUND)),
            self._batches: zip(("full", "drained", "deadline")),
            self._shadow: zip(SHADOW),
            self._batch_seconds: zip((crops.CROP, crops.DENSE)),
        }
        for family, series in zeros.items():
            for labels in series:
                family.labels(*labels)

    def request(  # noqa: PLR0913 - each is a label, or what is counted
        self,
        route: str,
        method: str,
        code: int,
        seconds: float,
        traced: dict[str, str],
        *,
        background: bool,
    ) -> None:
        """Count an answered request; `traced` is its exemplar, empty if it is not traced."""
        priority = _priority(background=background)
        self._requests.labels(route, method, code, priority).inc()
        self._request_seconds.labels(route, code, priority).observe(seconds, traced or None)

    def expect(self, route: str, method: str, codes: Iterable[int]) -> None:
        """Begin counting from zero what a route may answer: a rate sees no first event."""
        for code in codes:
            self._requests.labels(route, method, code, INTERACTIVE)

    def in_flight(self, change: int) -> None:
        """Count a request in (1) or out (-1)."""
        self._in_flight.inc(change)

    def connected(self, count: Callable[[], int]) -> None:
        """Ask this at every scrape for how many connections are open."""
        self._connections.set_function(count)

    def closed(self, reason: str) -> None:
        """Count a connection that was closed without an answer."""
        self._closed.labels(reason).inc()

    def stage(self, stage: str, seconds: float, *, background: bool) -> None:
        """Record how long a stage of a request took."""
        self._stages.labels(stage, _priority(background=background)).observe(seconds)

    def image(self, plan: str, error: ServiceError | None = None) -> None:
        """Count an image answered, or refused."""
        self._images.labels(plan, error.code if error else "ok").inc()

    def cache_hit(self) -> None:
        """Count an image whose answer was kept."""
        self._cache_hits.inc()

    def rejected(self, error: ServiceError, *, background: bool = False) -> None:
        """Count a request or an image refused."""
        self._rejected.labels(error.code, _priority(background=background)).inc()

    def callers(self, names: Iterable[str]) -> None:
        """Count requests by these keys' names from now on, and forget all other names."""
        before, self._callers = self._callers, frozenset(names)
        for outcome in CALLS:
            for gone in before - self._callers:
                self._key_requests.remove(gone, outcome)
            for name in self._callers:
                self._key_requests.labels(name, outcome)

    def called(self, name: str, outcome: str) -> None:
        """Count a request by its key's name and one of `CALLS`."""
        self._key_requests.labels(name, outcome).inc()

    def work(self, model: str, report: BatchReport | DropReport | RestartReport) -> None:
        """Turn what a model's batcher and worker report into series."""
        if isinstance(report, RestartReport):
            self._restarts.labels(model).inc(not report.serves)
            return
        if isinstance(report, DropReport):
            self._dropped.labels(report.why, report.where).inc()
            return
        self._batch_failures.inc(report.failed)
        for wait in report.waits:
            self._queue_wait.labels(_priority(background=wait.background)).observe(wait.seconds)
        if report.key.maps:  # of one row each: they say nothing of how others are batched
            return
        self._batches.labels(report.reason).inc()
        self._batch_rows.observe(report.rows)
        self._batch_seconds.labels(report.key.side).observe(report.seconds)
        self._padding.inc(report.size - report.rows)
        if model in self._served:  # else it ends what it has begun, and is told of no more
            self._rate(model, report.key, report.rate)

    def serves(self, served: Mapping[str, tuple[Backend, float]]) -> None:
        """Tell of these models and no others: who does their work, and the seconds of a load."""
        before, self._served = (
            self._served,
            {name: backend for name, (backend, _) in served.items()},
        )
        for name, backend in before.items():
            if self._served.get(name) is not backend:
                self._forget(name)
        for name, (backend, seconds) in served.items():
            self._restarts.labels(name)  # from 0
            if before.get(name) is not backend:
                self._tell(name, backend, seconds)
        self._workers.pids = {name: backend.pid for name, backend in self._served.items()}
        self._threads.labels("worker").set_function(
            lambda: sum(_threads(backend.pid) for backend in self._served.values())
        )

    def _tell(self, name: str, backend: Backend, seconds: float) -> None:
        ensemble = backend.ensemble
        devices = len({executor.device for executor in backend.executors})
        for key in ensemble.costs.curves:
            if not key.maps:
                self._rate(name, key, devices * ensemble.costs.rate(key))
        for member in ensemble.members:
            about = (member.name, member.version, member.sha256)
            self._model.labels(name, *about, ensemble.device, ensemble.precision).set(1)
        self._load_seconds.labels(name).set(seconds)
        self._warmup_seconds.labels(name).set(ensemble.warmup_seconds)

    def _forget(self, name: str) -> None:
        for gauge in (self._capacity, self._model, self._load_seconds, self._warmup_seconds):
            gauge.remove_by_labels({"model": name})

    def shadow(self, outcome: str, distance: float | None) -> None:
        """Count an image that a candidate was asked for, and how far its answer was."""
        self._shadow.labels(outcome).inc()
        if distance is not None:
            self._shadow_distance.observe(distance)

    def lag(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._lag.observe(seconds)

    def watch(
        self,
        *,
        ready: Callable[[], bool],
        backlog: Callable[[], Backlog],
        cached: Callable[[], int],
    ) -> None:
        """Ask these at every scrape for what has no event to report it."""
        self._ready.set_function(ready)
        self._queue_rows.set_function(lambda: backlog().rows)
        self._queue_bulk_rows.set_function(lambda: backlog().background)
        self._queue_bytes.set_function(lambda: backlog().nbytes)
        self._predicted_wait.set_function(lambda: backlog().seconds)
        self._cache_bytes.set_function(cached)
        self._heartbeat.set_function(lambda: time.time() - backlog().stalled)

    def _rate(self, model: str, key: Key, rows: float) -> None:
        member = self._served[model].ensemble.members[key.member]
        self._capacity.labels(model, member.name, key.side).set(rows)


def _priority(*, background: bool) -> str:
    return BACKGROUND if background else INTERACTIVE


def _threads(pid: int) -> float:
    """Count a process's threads; not a number where it has ended or Linux is not there to tell."""
    try:
        return len([*Path(f"/proc/{pid}/task").iterdir()])
    except OSError:
        return math.nan


def _leaves(error: type[ServiceError]) -> list[type[ServiceError]]:
    below = error.__subclasses__()
    return [leaf for child in below for leaf in _leaves(child)] if below else [error]


def _version(library: str) -> str:
    """Give the version of a library; nothing where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
