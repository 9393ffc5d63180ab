"""How sure a network may be: the temperature of its softmax.

A network learns to be surer than it is right. Dividing its logits by one number, found on
pictures it has not learnt from, mends that and changes no ranking (Guo et al., "On Calibration
of Modern Neural Networks", arXiv 1706.04599).
"""

import numpy as np
import numpy.typing as npt

from service.manifest import Calibration

BINS = 15  # of the expected calibration error, as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # where nearly all is wrong, the best would be infinite

Floats = npt.NDArray[np.floating]
Classes = npt.NDArray[np.integer]

_HALVINGS = 50


def calibrate(logits: Floats, targets: Classes, sha256: str) -> Calibration:
    """Calibrate the weights with this SHA-256 by pictures that they have not learnt from.

    Takes (pictures, classes) logits, each row up to a constant, and (pictures,) true classes.
    """
    found = temperature(logits, targets)
    before, after = (error(softmax(logits / t), targets) for t in (1.0, found))
    return Calibration(
        temperature=round(found, 4),
        sha256=sha256,
        pictures=len(targets),
        error=(round(before, 4), round(after, 4)),
    )


def sentence(found: Calibration) -> str:
    """Say what came of it."""
    before, after = (f"{100 * error:.1f} %" for error in found.error)
    return (
        f"temperature {found.temperature:.3f}: on {found.pictures} pictures its expected "
        f"calibration error goes from {before} to {after}"
    )


def temperature(logits: Floats, targets: Classes) -> float:
    """Find the temperature, from `COLDEST` to `HOTTEST`, at which the targets are likeliest.

    One picture's worth of doubt is spread over all classes, as Platt does (1999), since all
    right on a few pictures does not mean always right. The likelihood is concave in
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
