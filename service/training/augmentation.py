"""Data augmentation: a random patch of an image each time (section 6 of the paper).

A patch has 8 to 100 % of the image's area, an aspect from 3/4 to 4/3, is resized with a
random filter, perhaps mirrored, and distorted in brightness, contrast and saturation as in
Howard, "Some Improvements on Deep Convolutional Neural Network Based Image Classification"
(arXiv 1312.5402), which the paper follows.
"""

import math
from random import Random

import numpy as np
from PIL import Image, ImageEnhance

from service.imaging.crops import CROP, Pixels

ASPECTS = (3 / 4, 4 / 3)

_TRIES = 10
_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

Box = tuple[float, float, float, float]  # left, top, right, bottom


def augment(
    image: Image.Image, random: Random, *, smallest: float, distortion: float, mirror: bool
) -> Pixels:
    """Draw a patch of an upright RGB image: (224, 224, 3) uint8.

    It has at least the share `smallest` of the image; brightness, contrast and saturation
    become up to `distortion` times larger or smaller.
    """
    box = patch(image.width, image.height, random, smallest)
    small = image.resize((CROP, CROP), random.choice(_FILTERS), box)
    for enhancer in random.sample(_ENHANCERS, len(_ENHANCERS)):  # they do not commute
        small = enhancer(small).enhance(random.uniform(1 - distortion, 1 + distortion))
    if mirror and random.random() < 0.5:  # noqa: PLR2004 - half of them
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(small)


def patch(width: int, height: int, random: Random, smallest: float) -> Box:
    """Draw the box of a patch that fits; after ten tries, take the centre."""
    for _ in range(_TRIES):
        area = width * height * random.uniform(smallest, 1)
        aspect = math.exp(random.uniform(*map(math.log, ASPECTS)))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
            return left, top, left + wide, top + high
    narrowest, widest = ASPECTS
    wide, high = min(width, height * widest), min(height, width / narrowest)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high
