"""The service's metrics: every group, in a Prometheus registry of their own.

Names follow Prometheus's conventions: one prefix, base units, `_total` for counters. Label values
come from closed sets, and the series that are known at the start begin at zero, so that `rate()`
sees the first event.
"""

import os
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from service.scheduling.types import Backlog, BatchReport, DropReport, RestartReport
from service.serving.backend import Backend
from service.serving.metrics.answer_metrics import AnswerMetrics
from service.serving.metrics.batch_metrics import BatchMetrics, QueueMetrics
from service.serving.metrics.model_metrics import ModelMetrics, ShadowMetrics
from service.serving.metrics.process_metrics import ProcessMetrics, threads
from service.serving.metrics.request_metrics import (
    ConnectionMetrics,
    ImageMetrics,
    RequestMetrics,
)


class Metrics(
    ConnectionMetrics,
    RequestMetrics,
    ImageMetrics,
    AnswerMetrics,
    BatchMetrics,
    QueueMetrics,
    ModelMetrics,
    ShadowMetrics,
    ProcessMetrics,
):
    """All groups of metrics; `registry` is what is scraped."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ConnectionMetrics.__init__(self, registry)
        RequestMetrics.__init__(self, registry)
        ImageMetrics.__init__(self, registry)
        AnswerMetrics.__init__(self, registry)
        QueueMetrics.__init__(self, registry)
        BatchMetrics.__init__(self, registry)
        ModelMetrics.__init__(self, registry)
        ShadowMetrics.__init__(self, registry)
        ProcessMetrics.__init__(self, registry)
        self._threads.labels("http").set_function(lambda: threads(os.getpid()))

    def work(self, model: str, report: BatchReport | DropReport | RestartReport) -> None:
        """Count a report of a model's batcher or worker."""
        if isinstance(report, RestartReport):
            self._restarts.labels(model).inc(not report.serves)
        elif isinstance(report, DropReport):
            self._drop(report)
        else:
            for wait in report.waits:
                self._wait(wait)
            self._batch(report)
            self._rate(model, report.key, report.rate)

    def serves(self, served: Mapping[str, tuple[Backend, float]]) -> None:
        """Publish these models and count their answers; see `ModelMetrics.serves`."""
        super().serves(served)
        self.count_answers_of({name: backend.ensemble for name, (backend, _) in served.items()})

    def watch(
        self,
        *,
        backlog: Callable[[], Backlog],
        cached: Callable[[], int],
    ) -> None:
        """Call these at every scrape, for gauges that no event updates."""
        self._cache_bytes.set_function(cached)
        self._watch_queue(backlog)
