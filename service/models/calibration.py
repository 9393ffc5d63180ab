"""Temperature scaling: calibrate a network's probabilities.

Networks are overconfident. Dividing the logits by one number, fitted to held-out images, corrects
that and changes no ranking (Guo et al., "On Calibration of Modern Neural Networks", arXiv
1706.04599).
"""

import numpy as np
import numpy.typing as npt

from service.errors import ModelError
from service.models.manifest import Calibration

# Minimum number of images. For simulated networks of 10 classes whose true temperature is 1.3, a
# fit to 5 images made the likelihood of other images worse for 49 in 100 networks, to 25 for 16,
# to 50 for 3 and to 100 for none; the standard error is then 10 %.
LEAST = 100
FOLDS = 5  # of the cross-validation
BINS = 15  # of the expected calibration error, as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # bounds: without them, all wrong would fit infinity

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]

_BISECTIONS = 50


def calibrate(logits: Floats, targets: Classes, sha256: str) -> Calibration:
    """Calibrate the weights with this SHA-256 on held-out images.

    Takes (images, classes) logits, each row up to a constant, and (images,) true classes. Raises
    `ModelError` for fewer than `LEAST` images, or if cross-validation shows a larger calibration
    error or log loss with the temperature than without.
    """
    check_count(len(targets))
    plain, fitted = softmax(logits), held_out(logits, targets)
    before, after = error(plain, targets), error(fitted, targets)
    losses = log_loss(plain, targets), log_loss(fitted, targets)
    if after > before or losses[1] > losses[0]:
        raise ModelError(
            "a temperature would not make probabilities better: on images that it was not fitted"
            f" to, the expected calibration error goes from {100 * before:.1f} % to"
            f" {100 * after:.1f} %, and the log loss from {losses[0]:.4f} to {losses[1]:.4f}"
        )
    return Calibration(
        temperature=round(temperature(logits, targets), 4),
        sha256=sha256,
        images=len(targets),
        error=(round(before, 4), round(after, 4)),
    )


def check_count(images: int) -> None:
    """Raise `ModelError` for fewer than `LEAST` images."""
    if images < LEAST:
        raise ModelError(
            f"a temperature is fitted to {LEAST} labelled images or more, and here are"
            f" {images}: fewer can make probabilities worse"
        )


def uncalibrated(logits: Floats, targets: Classes, sha256: str) -> Calibration:
    """Return the calibration with a temperature of 1, for networks that need none."""
    before = round(error(softmax(logits), targets), 4)
    return Calibration(temperature=1, sha256=sha256, images=len(targets), error=(before, before))


def tempered(probabilities: Floats, now: float, wanted: float) -> Floats:
    """Convert probabilities (rows, classes) of one temperature to those of another."""
    tiny = np.finfo(np.float32).tiny  # 0 has no logarithm
    return softmax(np.log(np.maximum(probabilities, tiny, dtype=np.float64)) * (now / wanted))


def sentence(calibration: Calibration) -> str:
    """Describe a calibration's temperature in one sentence."""
    before, after = (f"{100 * error:.1f} %" for error in calibration.error)
    return (
        f"temperature {calibration.temperature:.3f}: on {calibration.images} images, each part of"
        " them by a fit to the others, its expected calibration error goes"
        f" from {before} to {after}"
    )


def held_out(logits: Floats, targets: Classes) -> Floats:
    """Compute the cross-validated probabilities: each fold by the temperature of the others."""
    probabilities = np.empty_like(logits, dtype=np.float64)
    part = parts(len(targets))
    for fold in range(FOLDS):
        inside, outside = part == fold, part != fold
        fitted = temperature(logits[outside], targets[outside])
        probabilities[inside] = softmax(logits[inside] / fitted)
    return probabilities


def parts(count: int) -> Classes:
    """Assign images to folds, shuffled with a fixed seed: their order may have a pattern."""
    folds: Classes = np.random.default_rng(0).permutation(count) % FOLDS
    return folds


def log_loss(probabilities: Floats, targets: Classes) -> float:
    """Compute the mean negative log-likelihood of the true classes."""
    right = np.take_along_axis(probabilities, targets[:, None], 1)
    return float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean())


def temperature(logits: Floats, targets: Classes) -> float:
    """Fit the temperature, `COLDEST` to `HOTTEST`, by maximum likelihood.

    The targets are smoothed by one image's worth, as Platt does (1999): all right on a few images
    does not mean always right. The likelihood is concave in 1 / temperature, so its slope has one
    zero, found by bisection.
    """
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    smoothing = 1 / (len(targets) + 2)
    right = np.take_along_axis(logits, targets[:, None], 1).mean()
    target = (1 - smoothing) * right + smoothing * logits.mean()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        expected = (softmax(logits * np.exp(middle)) * logits).sum(1).mean()
        low, high = (middle, high) if expected < target else (low, middle)
    return float(np.exp(-(low + high) / 2))


def error(probabilities: Floats, targets: Classes) -> float:
    """Compute the expected calibration error, 0 to 1: confidence against accuracy, in bins."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS))
    return float(gaps.sum() / len(targets))


def softmax(logits: Floats) -> Floats:
    """Compute (rows, classes) probabilities from logits."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares
