"""Metrics of the queue and of batches."""

import time
from collections.abc import Callable
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.imaging import crops
from service.scheduling.types import Backlog, BatchReport, DropReport, Wait
from service.serving.metrics.labels import BACKGROUND, INTERACTIVE, LATENCY, priority

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class QueueMetrics:
    """The queue's length, and jobs that waited or were dropped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dropped = Counter(
            "googlenet_cancelled",
            "Jobs that ended without a result: late or cancelled, while queued or in a batch.",
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
        self._queue_rows = Gauge(
            "googlenet_queue_rows", "Rows queued or being decoded.", registry=registry
        )
        self._queue_background_rows = Gauge(
            "googlenet_queue_background_rows",
            "Of the rows queued or being decoded, those of background requests.",
            registry=registry,
        )
        self._queue_bytes = Gauge(
            "googlenet_queue_bytes", "Bytes of queued images.", registry=registry
        )
        self._predicted_wait = Gauge(
            "googlenet_queue_predicted_seconds",
            "Predicted seconds until all accepted interactive work is done.",
            registry=registry,
        )
        self._heartbeat = Gauge(
            "googlenet_worker_last_heartbeat_timestamp_seconds",
            "When the device was last idle or started its current batch.",
            registry=registry,
        )
        for labels in product(("late", "cancelled"), ("queue", "batch")):
            self._dropped.labels(*labels)
        for label in (INTERACTIVE, BACKGROUND):
            self._queue_wait.labels(label)

    def _drop(self, report: DropReport) -> None:
        self._dropped.labels(report.why, report.where).inc()

    def _wait(self, wait: Wait) -> None:
        self._queue_wait.labels(priority(background=wait.background)).observe(wait.seconds)

    def _watch_queue(self, backlog: Callable[[], Backlog]) -> None:
        self._queue_rows.set_function(lambda: backlog().rows)
        self._queue_background_rows.set_function(lambda: backlog().background)
        self._queue_bytes.set_function(lambda: backlog().nbytes)
        self._predicted_wait.set_function(lambda: backlog().seconds)
        self._heartbeat.set_function(lambda: time.time() - backlog().stalled)


class BatchMetrics:
    """Batches: their sizes, seconds and failures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Counter(
            "googlenet_batches",
            "Batches run, by the reason for their size: full, drained queue, or a deadline.",
            ["reason"],
            registry=registry,
        )
        self._batch_failures = Counter(
            "googlenet_batch_failures", "Batches that the device failed on.", registry=registry
        )
        self._batch_rows = Histogram(
            "googlenet_batch_rows", "Rows in a batch.", buckets=_ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "googlenet_batch_duration_seconds",
            "A device's time for a batch.",
            ["side"],
            buckets=LATENCY,
            registry=registry,
        )
        self._padding = Counter(
            "googlenet_batch_padding_rows", "Padding rows in batches.", registry=registry
        )
        for reason in ("full", "drained", "deadline"):
            self._batches.labels(reason)
        for side in (crops.CROP, crops.DENSE):
            self._batch_seconds.labels(side)

    def _batch(self, report: BatchReport) -> None:
        self._batch_failures.inc(report.failed)
        if report.key.maps:  # batches of one row each, which would distort the others' statistics
            return
        self._batches.labels(report.reason).inc()
        self._batch_rows.observe(report.rows)
        self._batch_seconds.labels(report.key.side).observe(report.seconds)
        self._padding.inc(report.size - report.rows)
