"""Confidence, entropy and drift of answers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from conftest import fake_backend
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from test_classify import SETTINGS, parts, plain, service
from test_metrics import counts, value

from service.models.ensemble import Ensemble
from service.models.manifest import Bins, Reference
from service.serving.metrics import answer_metrics
from service.serving.metrics.answer_metrics import WINDOW, AnswerMetrics

REFERENCE = Reference(
    labels=Bins(edges=(0, 1), counts=(50, 50, 0)), confidence=Bins(edges=(0.6,), counts=(50, 50))
)
RED, GREEN, BLUE = np.array([0.9, 0.1, 0]), np.array([0.4, 0.6, 0]), np.array([0.0, 0.0, 1.0])


def calibrated(ensemble: Ensemble) -> Ensemble:
    (member,) = ensemble.members
    return replace(ensemble, members=(replace(member, references={"single": REFERENCE}),))


def psi(registry: CollectorRegistry, distribution: str, views: str = "single") -> float | None:
    labels = {"model": "fake", "views": views, "distribution": distribution}
    return registry.get_sample_value("googlenet_drift_psi", labels)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> AnswerMetrics:
    return AnswerMetrics(registry)


@pytest.fixture
def ensemble(metrics: AnswerMetrics) -> Ensemble:
    """A model that is served, and has a reference for one view."""
    ensemble = calibrated(fake_backend().ensemble)
    metrics.count_answers_of({"fake": ensemble})
    return ensemble


def test_drift_is_of_the_last_answers_once_they_are_enough(
    metrics: AnswerMetrics, ensemble: Ensemble, registry: CollectorRegistry
) -> None:
    for number in range(WINDOW - 1):
        metrics.answered(ensemble, "single", (RED, GREEN)[number % 2])
    assert psi(registry, "labels") is None
    metrics.answered(ensemble, "single", GREEN)
    for distribution in ("labels", "confidence"):
        same = psi(registry, distribution)
        assert same is not None
        assert same < 0.05
    for _ in range(WINDOW):
        metrics.answered(ensemble, "single", BLUE)
    for distribution in ("labels", "confidence"):
        other = psi(registry, distribution)
        assert other is not None
        assert other > 1


def test_views_without_a_reference_and_models_not_served_have_no_drift(
    metrics: AnswerMetrics, ensemble: Ensemble, registry: CollectorRegistry
) -> None:
    for _ in range(WINDOW):
        metrics.answered(ensemble, "paper", RED)
        metrics.answered(calibrated(fake_backend().ensemble), "single", RED)
    assert psi(registry, "labels") is psi(registry, "labels", "paper") is None
    of_model = {"model": "fake"}
    assert registry.get_sample_value("googlenet_answer_confidence_count", of_model) == WINDOW


def test_new_weights_start_anew_and_an_unloaded_model_is_removed(
    metrics: AnswerMetrics, ensemble: Ensemble, registry: CollectorRegistry
) -> None:
    for _ in range(WINDOW):
        metrics.answered(ensemble, "single", RED)
    assert psi(registry, "labels") is not None
    reloaded = replace(ensemble)
    metrics.count_answers_of({"fake": reloaded})
    metrics.answered(reloaded, "single", RED)
    assert psi(registry, "labels") is None
    of_model = {"model": "fake"}
    assert registry.get_sample_value("googlenet_answer_entropy_nats_count", of_model) == 1
    metrics.count_answers_of({})
    assert registry.get_sample_value("googlenet_answer_entropy_nats_count", of_model) is None


@pytest.mark.parametrize(("likely", "nats"), [
    ([0, 1, 0], 0),
    ([0.5, 0.5, 0], np.log(2)),
    ([1 / 3] * 3, np.log(3)),
])  # fmt: skip
def test_entropy(likely: list[float], nats: float) -> None:
    assert answer_metrics.entropy(np.array(likely)) == pytest.approx(nats)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A service of a calibrated model, with a cache."""
    backend = fake_backend()
    backend.ensemble = calibrated(backend.ensemble)
    changed = {"cache_bytes": 10**6, "views": "single", "max_images_per_request": 10}
    settings = SETTINGS.model_copy(update=changed)
    with service(lambda *_: backend, settings) as client:
        yield client


def test_every_image_that_is_answered_is_counted(client: TestClient) -> None:
    model = (SETTINGS.model,)
    assert value(client, "googlenet_answer_confidence_count", *model) == 0
    for _ in range(2):  # the second answers are from the cache
        client.post("/classify", files=parts(plain("red"), plain("green"), b"no image"))
    assert value(client, "googlenet_answer_confidence_count", *model) == 4
    assert value(client, "googlenet_answer_entropy_nats_count", *model) == 4


def test_drift_shows_at_the_service(client: TestClient) -> None:
    assert counts(client, "googlenet_drift_psi") == {}
    for _ in range(WINDOW // 10):
        client.post("/classify", files=parts(*[plain("red")] * 10))
    drifts = counts(client, "googlenet_drift_psi")
    assert {key[0] for key in drifts} == {"confidence", "labels"}
    assert all(psi > 0.25 for psi in drifts.values())
