"""How sure a network may be: the temperature of its softmax.

A network learns to be surer than it is right. Dividing its logits by one number, found on
images it has not learnt from, mends that and changes no ranking (Guo et al., "On Calibration
of Modern Neural Networks", arXiv 1706.04599).
"""

import numpy as np
import numpy.typing as npt

from service.errors import ModelError
from service.models.manifest import Calibration

# Images that a temperature may be fitted to. Of networks of 10 classes that were drawn to need a
# temperature of 1.3, the fit to 5 images made the likelihood of other images worse for 49 in
# 100, to 25 for 16, to 50 for 3 and to 100 for none; its standard error is then 10 %.
LEAST = 100
FOLDS = 5  # parts, each of which is judged by a fit to the others
BINS = 15  # of the expected calibration error, as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # where nearly all is wrong, the best would be infinite

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]

_HALVINGS = 50


def calibrate(logits: Floats, targets: Classes, sha256: str) -> Calibration:
    """Calibrate the weights with this SHA-256 by images that they have not learnt from.

    Takes (images, classes) logits, each row up to a constant, and (images,) true classes.
    Raises `ModelError` where the images are fewer than `LEAST`, or where the error or the log
    loss of images that a temperature was not fitted to is larger with it than without.
    """
    if len(targets) < LEAST:
        raise ModelError(
            f"a temperature is fitted to {LEAST} labelled images or more, and here are"
            f" {len(targets)}: fewer can make probabilities worse"
        )
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


def sentence(found: Calibration) -> str:
    """Say what came of it."""
    before, after = (f"{100 * error:.1f} %" for error in found.error)
    return (
        f"temperature {found.temperature:.3f}: on {found.images} images, each part of them by "
        f"a fit to the others, its expected calibration error goes from {before} to {after}"
    )


def held_out(logits: Floats, targets: Classes) -> Floats:
    """Give the probabilities of each part of the images by the temperature of the others."""
    likely = np.empty_like(logits, dtype=np.float64)
    part = parts(len(targets))
    for fold in range(FOLDS):
        ours, others = part == fold, part != fold
        likely[ours] = softmax(logits[ours] / temperature(logits[others], targets[others]))
    return likely


def parts(count: int) -> Classes:
    """Divide so many images by chance, each time alike: their order may have a pattern."""
    chosen: Classes = np.random.default_rng(0).permutation(count) % FOLDS
    return chosen


def log_loss(probabilities: Floats, targets: Classes) -> float:
    """Give the mean negative logarithm of the probability of what was right."""
    right = np.take_along_axis(probabilities, targets[:, None], 1)
    return float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean())


def temperature(logits: Floats, targets: Classes) -> float:
    """Find the temperature, from `COLDEST` to `HOTTEST`, at which the targets are likeliest.

    One image's worth of doubt is spread over all classes, as Platt does (1999), since all
    right on a few images does not mean always right. The likelihood is concave in
    1 / temperature, so its slope has one zero, found by halving.
    """
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    doubt = 1 / (len(targets) + 2)
    right = np.take_along_axis(logits, targets[:, None], 1).mean()
    wanted = (1 - doubt) * right + doubt * logits.mean()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (softmax(logits * np.exp(middle)) * logits).sum(1).mean()
        low, high = (middle, high) if expected < wanted else (low, middle)
    return float(np.exp(-(low + high) / 2))


def error(probabilities: Floats, targets: Classes) -> float:
    """Give the expected calibration error, 0 to 1: how far sureness is from being right."""
    sure = probabilities.max(1)
    right = probabilities.argmax(1) == targets
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    apart = np.abs(np.bincount(bins, sure, BINS) - np.bincount(bins, right, BINS))
    return float(apart.sum() / len(targets))


def softmax(logits: Floats) -> Floats:
    """Turn (rows, classes) logits into probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares
