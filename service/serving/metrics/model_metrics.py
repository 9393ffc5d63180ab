"""Metrics of the models that are served, their workers, and a shadow candidate."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.scheduling.cost_model import Key
from service.serving.backend import Backend
from service.serving.metrics.process_metrics import threads
from service.serving.metrics.worker_collector import WorkerCollector

_DISTANCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class ShadowMetrics:
    """How a shadow candidate's results compare with the default's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shadow = Counter(
            "googlenet_shadow_images",
            "Images sent to a candidate, by its first label compared with the default's.",
            ["outcome"],
            registry=registry,
        )
        self._shadow_distance = Histogram(
            "googlenet_shadow_distance",
            "The largest difference of a probability of the default's labels.",
            buckets=_DISTANCES,
            registry=registry,
        )
        for outcome in ("agreed", "differed", "failed", "skipped"):
            self._shadow.labels(outcome)

    def shadow(self, outcome: str, distance: float | None) -> None:
        """Count an image sent to a candidate, and how far its result differs."""
        self._shadow.labels(outcome).inc()
        if distance is not None:
            self._shadow_distance.observe(distance)


class ModelMetrics:
    """Each model's members, capacity, load times and worker process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._served: dict[str, Backend] = {}  # by model
        self._workers = WorkerCollector()
        registry.register(self._workers)
        self._ready = Gauge(
            "googlenet_ready", "1 if the readiness probe succeeds, else 0.", registry=registry
        )
        self._model = Gauge(
            "googlenet_model_info",
            "1 for each member of each model served.",
            ["model", "name", "version", "sha256", "device", "precision"],
            registry=registry,
        )
        self._capacity = Gauge(
            "googlenet_capacity_rows_per_second",
            "Most rows a second that all devices compute, by the time their batches took.",
            ["model", "member", "side"],
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
            "Restarts of a model's worker after it ended by itself.",
            ["model"],
            registry=registry,
        )
        self._threads = Gauge(
            "googlenet_process_threads",
            "Threads of the processes that serve HTTP, with their core (http), and of the workers.",
            ["process"],
            registry=registry,
        )

    def is_ready(self, ready: Callable[[], bool]) -> None:
        """Call `ready` at every scrape for whether the readiness probe succeeds."""
        self._ready.set_function(ready)

    def serves(self, served: Mapping[str, tuple[Backend, float]]) -> None:
        """Publish these models and no others: each with its backend and the seconds of its load."""
        before, self._served = (
            self._served,
            {name: backend for name, (backend, _) in served.items()},
        )
        for name, backend in before.items():
            if self._served.get(name) is not backend:
                self._remove(name)
        for name, (backend, seconds) in served.items():
            self._restarts.labels(name)  # from 0
            if before.get(name) is not backend:
                self._add(name, backend, seconds)
        self._workers.pids = {name: backend.pid for name, backend in self._served.items()}
        self._threads.labels("worker").set_function(
            lambda: sum(threads(backend.pid) for backend in self._served.values())
        )

    def _add(self, name: str, backend: Backend, seconds: float) -> None:
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

    def _remove(self, name: str) -> None:
        for gauge in (self._capacity, self._model, self._load_seconds, self._warmup_seconds):
            gauge.remove_by_labels({"model": name})

    def _rate(self, model: str, key: Key, rows: float) -> None:
        """Publish the rows a second of a key, unless the model is no longer served."""
        if model in self._served and not key.maps:
            member = self._served[model].ensemble.members[key.member]
            self._capacity.labels(model, member.name, key.side).set(rows)
