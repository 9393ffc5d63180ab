"""The command that calibrates a model on labelled photos."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.cli import console, offline, progress
from service.engine import engine
from service.errors import ModelError
from service.imaging import heif
from service.imaging.image_decoder import Bounds
from service.models import calibration, conformal, drift, stopping_fit, store
from service.models.manifest import Calibration
from service.offline import view_probabilities
from service.offline.view_probabilities import ViewProbabilities
from service.settings import Settings


def calibrate_model(settings: Settings, given: dict[str, Any]) -> int:
    """Fit what a manifest has of calibration to labelled photos, and write it there."""
    name = given["name"]
    settings = settings.model_copy(update={"model": name})
    model_store = store.locate(settings.model_store)
    digest = model_store.verify(name)
    now = model_store.manifest(name).temperature(digest)
    measured = _measure(settings, given["folder"])
    calibration.check_count(len(measured.targets))
    fitted, sentences = fit(measured, now, digest, given["agreement"] / 100)
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


def _measure(settings: Settings, folder: Path) -> ViewProbabilities:
    if settings.heic:
        heif.require()
    loaded = engine.load(settings)
    labelled = offline.photos(folder, loaded.ensemble.labels)
    bounds = Bounds(settings.max_pixels, settings.decode_timeout_seconds, settings.heic)
    with progress.counting() as bar:
        advance = partial(bar.advance, bar.add_task(settings.model, total=len(labelled)))
        return view_probabilities.measure(loaded, labelled, bounds, advance)
