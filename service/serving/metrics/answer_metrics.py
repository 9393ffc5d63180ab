"""Metrics of what models answer: confidence, entropy, and drift from their references."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, Histogram

from service.models import drift
from service.models.ensemble import Ensemble, Probabilities
from service.models.manifest import Bins

WINDOW = 1000  # answers that are compared with a reference

_CONFIDENCE = (*(step / 10 for step in range(1, 10)), 0.95, 0.99, 1.0)
_TINY = float(np.finfo(np.float64).tiny)  # 0 has no logarithm
_ENTROPY = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)


class RollingBins:
    """The bins of the last `WINDOW` values, and how they differ from a reference."""

    def __init__(self, reference: Bins) -> None:
        self._reference = reference
        self._last: deque[int] = deque(maxlen=WINDOW)

    @property
    def is_full(self) -> bool:
        """Whether there are as many values as are compared."""
        return len(self._last) == WINDOW

    def add(self, value: float) -> None:
        """Add a value, and forget the oldest of a full window."""
        self._last.append(drift.bin_of(value, self._reference))

    def psi(self) -> float:
        """Compute the population stability index against the reference."""
        counts, bins = Counter(self._last), range(len(self._reference.counts))
        return drift.psi(self._reference.counts, [counts[number] for number in bins])


@dataclass(frozen=True, slots=True)
class _Model:
    """A served model, and its series: to look them up takes longer than to count in them."""

    ensemble: Ensemble
    confidence: Histogram
    entropy: Histogram


class AnswerMetrics:
    """Each served model's confidence and entropy, and its drift where it has a reference."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: dict[str, _Model] = {}  # by name
        self._windows: dict[tuple[str, str, str], RollingBins] = {}  # by the gauge's labels
        self._confidence = Histogram(
            "googlenet_answer_confidence",
            "The probability of an answer's first label.",
            ["model"],
            buckets=_CONFIDENCE,
            registry=registry,
        )
        self._entropy = Histogram(
            "googlenet_answer_entropy_nats",
            "The entropy of an answer's probabilities: 0 if one label is certain.",
            ["model"],
            buckets=_ENTROPY,
            registry=registry,
        )
        self._psi = Gauge(
            "googlenet_drift_psi",
            f"Population stability index of the last {WINDOW} answers by these views, against those"
            " on the model's calibration images: of the first labels, or of their confidence.",
            ["model", "views", "distribution"],
            registry=registry,
        )

    def count_answers_of(self, served: Mapping[str, Ensemble]) -> None:
        """Count the answers of these models and no others, those of new weights from zero."""
        for name, model in self._models.items():
            if served.get(name) is not model.ensemble:
                self._forget(name)
        self._models = {
            name: _Model(ensemble, self._confidence.labels(name), self._entropy.labels(name))
            for name, ensemble in served.items()
        }

    def answered(self, ensemble: Ensemble, plan: str, probabilities: Probabilities) -> None:
        """Count an answer's probabilities, (classes,), unless its model is no longer served."""
        for name, model in self._models.items():
            if model.ensemble is ensemble:
                self._count(name, model, plan, probabilities)

    def _count(self, name: str, model: _Model, plan: str, probabilities: Probabilities) -> None:
        index = int(probabilities.argmax())
        confidence = float(probabilities[index])
        model.confidence.observe(confidence)
        model.entropy.observe(entropy(probabilities))
        reference = model.ensemble.references.get(plan)
        if reference:
            self._compare((name, plan, "labels"), reference.labels, index)
            self._compare((name, plan, "confidence"), reference.confidence, confidence)

    def _compare(self, labels: tuple[str, str, str], reference: Bins, value: float) -> None:
        window = self._windows.get(labels)
        if window is None:
            window = self._windows[labels] = RollingBins(reference)
        was_full = window.is_full
        window.add(value)
        if window.is_full and not was_full:
            self._psi.labels(*labels).set_function(window.psi)  # computed at a scrape

    def _forget(self, model: str) -> None:
        self._windows = {key: it for key, it in self._windows.items() if key[0] != model}
        for metric in (self._confidence, self._entropy, self._psi):
            metric.remove_by_labels({"model": model})


def entropy(probabilities: Probabilities) -> float:
    """Compute the entropy of (classes,) probabilities in nats, 0 to log(classes)."""
    return max(0.0, -float(probabilities @ np.log(np.maximum(probabilities, _TINY))))
