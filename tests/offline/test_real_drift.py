"""Drift of the real network's answers: photos of another kind raise it, others do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from service.engine.engine import Engine
from service.imaging.image_decoder import Bounds
from service.models import drift
from service.models.ensemble import Ensemble
from service.offline import evaluation, view_probabilities
from service.offline.evaluation import Photo
from service.serving.metrics.answer_metrics import WINDOW
from service.serving.metrics.metrics import Metrics

ALERT = 0.25
Change = Callable[[Image.Image], Image.Image]


def rotated(photo: Image.Image) -> Image.Image:
    """Rotate by a quarter, as without its EXIF orientation."""
    return photo.transpose(Image.Transpose.ROTATE_90)


def noised(photo: Image.Image) -> Image.Image:
    """Add noise, as a sensor in the dark does."""
    pixels = np.asarray(photo, float)
    noise = np.random.default_rng(0).normal(0, 60, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def answers(network: Engine, photos: list[Photo]) -> np.ndarray:
    """Classify photos by one view: (photos, classes) probabilities."""
    by_view = view_probabilities.each(network, photos, Bounds(10**8), lambda _: None, "single")
    return np.array([views[0] for _, views in by_view])


def served(ensemble: Ensemble, likely: np.ndarray) -> dict[str, float]:
    """Count a window of answers, drawn from these; give the indices by distribution."""
    metrics = Metrics()
    metrics.count_answers_of({"real": ensemble})
    for row in np.random.default_rng(0).integers(len(likely), size=WINDOW):
        metrics.answered(ensemble, "single", likely[row])
    return {
        sample.labels["distribution"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "googlenet_drift_psi"
    }


def saved(path: Path, change: Change, folder: Path) -> Path:
    """Save a changed photo, without a loss."""
    changed = folder / f"{change.__name__}-{path.stem}.png"
    change(Image.open(path).convert("RGB")).save(changed, compress_level=1)
    return changed


@pytest.mark.slow
def test_only_photos_of_another_kind_drift(real_engine: Engine, tmp_path: Path) -> None:
    photos = evaluation.find(SHARED / "photos", real_engine.ensemble.labels)
    before = answers(real_engine, photos)
    (member,) = real_engine.ensemble.members
    ensemble = replace(
        real_engine.ensemble, members=(replace(member, references=drift.fit({"single": before})),)
    )
    week = served(ensemble, before)
    assert max(week.values()) < 0.1
    for change in (rotated, noised):
        changed = [Photo(saved(photo.path, change, tmp_path), photo.index) for photo in photos]
        assert served(ensemble, answers(real_engine, changed))["confidence"] > ALERT, change
