"""Whether a number format agrees with float32: looked at once, before it is chosen by itself."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging.crops import CROP

logger = logging.getLogger(__name__)

# How far a probability may be from float32's for a number format to be chosen by itself. On
# photos, formats within it agree on the first label (see `benchmarks/`).
AGREEMENT = 0.1
_IMAGES = 8

Probabilities = npt.NDArray[np.float32]  # (images, classes)


def probe() -> npt.NDArray[np.uint8]:
    """Make images to compare number formats on: (8, 224, 224, 3), smooth and random."""
    coarse = np.random.default_rng(0).integers(0, 256, (_IMAGES, 7, 7, 3), np.uint8)
    smooth = [Image.fromarray(one).resize((CROP, CROP), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in smooth])


def agree(exact: Sequence[Probabilities], found: Sequence[Probabilities], precision: str) -> bool:
    """Tell whether no probability, of any member, is far from float32's."""
    pairs = zip(exact, found, strict=True)
    apart = max(float(np.abs(one - other).max()) for one, other in pairs)
    logger.info("%s is at most %.4f from float32", precision, apart)
    return apart <= AGREEMENT
