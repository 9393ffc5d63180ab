"""The command that calibrates a model on labelled photos."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from service.cli import console, offline, progress
from service.engine import engine
from service.engine.engine import Engine
from service.errors import ModelError
from service.imaging.image_decoder import Bounds
from service.models import calibration, conformal, drift, stopping_fit, store
from service.models.manifest import Calibration, PairedStopping
from service.offline import view_probabilities
from service.offline.evaluation import Photo
from service.offline.view_probabilities import ViewProbabilities
from service.settings import Settings


def calibrate_model(settings: Settings, given: dict[str, Any]) -> int:
    """Fit what a manifest has of calibration to labelled photos, and write it there."""
    name = given["name"]
    settings = settings.model_copy(update={"model": name})
    model_store = store.locate(settings.model_store)
    digest = model_store.verify(name)
    now = model_store.manifest(name).temperature(digest)
    photos, agreement = _Photos.of(settings, given["folder"]), given["agreement"] / 100
    with photos.counted() as advance:
        measured = view_probabilities.measure(*photos.all, advance)
    calibration.check_count(len(measured.targets))
    fitted, sentences = fit(measured, now, digest, agreement)
    if given["paper"]:
        with photos.counted() as advance:
            paired = _paired(photos, advance, (now, fitted.temperature), agreement)
        fitted = fitted.model_copy(update={"paired": paired})
        sentences.append(stopping_fit.sentence(paired))
    with model_store.locked(name):
        model_store.calibrate(name, fitted)
    for sentence in sentences:
        console.say(f"{name}: {sentence}")
    return 0


def fit(
    measured: ViewProbabilities, now: float, sha256: str, agreement: float
) -> tuple[Calibration, list[str]]:
    """Fit a calibration to what a network says of images; return it with a sentence on each part.

    `now` is the softmax temperature of the probabilities; `agreement` is `stopping_fit.fit`'s.
    Without a temperature that makes probabilities better it is 1.
    """
    logits = np.log(np.maximum(measured.views[:, 0], np.finfo(np.float32).tiny)) * now
    try:
        fitted = calibration.calibrate(logits, measured.targets, sha256)
        sentences = [calibration.sentence(fitted)]
    except ModelError as error:
        fitted, sentences = calibration.uncalibrated(logits, measured.targets, sha256), [str(error)]
    means = measured.means(now, fitted.temperature)
    stopping = stopping_fit.fit(means, measured.ends, agreement)
    by_plan = {
        "single": means[:, 0],
        "ten": means[:, -1],
        "adaptive": stopping_fit.looked(means, stopping.lead),
    }
    sets = conformal.fit(by_plan, measured.targets)
    reference = drift.fit(by_plan)
    sentences += [
        stopping_fit.sentence(stopping),
        conformal.sentence(sets),
        drift.sentence(reference),
    ]
    parts = {"stopping": stopping, "sets": sets, "reference": reference}
    return fitted.model_copy(update=parts), sentences


@dataclass(frozen=True, slots=True)
class _Photos:
    """The labelled photos, and the engine that looks at them."""

    name: str
    engine: Engine
    labelled: Sequence[Photo]
    bounds: Bounds

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Self:
        bounds, loaded = Bounds.of(settings), engine.load(settings)
        labelled = offline.photos(folder, loaded.ensemble.labels)
        return cls(settings.model, loaded, labelled, bounds)

    @property
    def all(self) -> tuple[Engine, Sequence[Photo], Bounds]:
        return self.engine, self.labelled, self.bounds

    def counted(self) -> AbstractContextManager[Callable[[int], None]]:
        """Show how many of them are done."""
        return progress.counted(self.name, len(self.labelled))


def _paired(
    photos: _Photos,
    advance: Callable[[int], None],
    temperatures: tuple[float, float],  # of the probabilities, and wanted
    agreement: float,
) -> PairedStopping:
    """Fit the paired rule, one photo after the other: all of their views would take much memory."""
    plan = "adaptive:paper"
    by_view = view_probabilities.each(*photos.all, advance, plan)
    tempered = (calibration.tempered(views, *temperatures) for _, views in by_view)
    looks = stopping_fit.of_pairs(tempered, view_probabilities.ends(photos.engine, plan))
    return stopping_fit.fit_paired(looks, agreement)
