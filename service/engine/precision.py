"""Comparison of a number format with float32, before `auto` chooses it."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging.crops import CROP

logger = logging.getLogger(__name__)

# Largest difference of a probability from float32's with which `auto` chooses a number format. On
# photos, formats within it agree on the first label (see `benchmarks/`).
AGREEMENT = 0.1
_IMAGES = 8

Probabilities = npt.NDArray[np.float32]  # (images, classes)


def probe() -> npt.NDArray[np.uint8]:
    """Make smooth random images to compare number formats on: (8, 224, 224, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (_IMAGES, 7, 7, 3), np.uint8)
    images = (Image.fromarray(pixels) for pixels in coarse)
    smooth = [image.resize((CROP, CROP), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in smooth])


def agree(exact: Sequence[Probabilities], actual: Sequence[Probabilities], precision: str) -> bool:
    """Whether all members' probabilities are within `AGREEMENT` of float32's."""
    pairs = zip(exact, actual, strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    logger.info("%s probabilities differ from float32 by at most %.4f", precision, difference)
    return difference <= AGREEMENT
