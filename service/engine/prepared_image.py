"""Prepared images: decoded once, with the canvases that views are cut from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import InvalidParameter
from service.imaging import crops, image_decoder
from service.imaging.crops import Pixels, Plan
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.manifest import Preprocessing

_MAX_VALUE = 1000  # of pixels, which are 0 to 255; far more would overflow float16

Unrounded = npt.NDArray[np.float32]  # (side, side, 3) RGB in pixel units


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image prepared for one member: its canvases and the views to cut from them."""

    plan: Plan
    canvases: tuple[Pixels | Unrounded, ...]
    size: tuple[int, int] = (1, 1)  # width and height of the image, possibly decoded smaller
    target: int = 0  # class of the activation maps
    features: bool = False  # whether its features are asked for, too


def prepare(
    image: ImageInput, plans: Sequence[Plan], bounds: Bounds, target: int = 0
) -> list[PreparedImage]:
    """Decode an image once and make each plan's canvases; equal plans share them.

    Raises what `service.imaging.image_decoder.decode` does.
    """
    upright = _upright(image, plans, bounds)
    size = upright.size
    prepared = {
        plan: PreparedImage(plan, crops.canvases(upright, plan), size, target) for plan in plans
    }
    return [prepared[plan] for plan in plans]


def _upright(image: ImageInput, plans: Sequence[Plan], bounds: Bounds) -> Image.Image:
    if isinstance(image, np.ndarray):
        return image_decoder.from_pixels(
            image.astype(np.uint8, copy=False), max_pixels=bounds.max_pixels
        )
    min_side = max(plan.min_side for plan in plans)
    return image_decoder.decode(
        image,
        max_pixels=bounds.max_pixels,
        seconds=bounds.seconds,
        min_side=min_side,
        heic=bounds.heic,
    )


def unscaled(tensor: npt.NDArray[np.float32], preprocessing: Preprocessing) -> Unrounded:
    """Convert a normalized tensor, (3, 224, 224), back to RGB pixels, (224, 224, 3)."""
    mean, scale = (
        np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.scale)
    )
    with np.errstate(all="ignore"):  # `given` checks the result
        pixels = tensor.transpose(1, 2, 0) / scale + mean
    return np.ascontiguousarray(pixels[..., ::-1] if preprocessing.channels == "BGR" else pixels)


def given(view: Unrounded, plans: Sequence[Plan]) -> list[PreparedImage]:
    """Prepare a view given as pixels; raises `InvalidParameter` unless each plan has one view."""
    if any(plan.side != len(view) or len(plan.views) > 1 for plan in plans):
        raise InvalidParameter("a tensor is one view of an image; use the views `single`")
    if not (np.abs(view) <= _MAX_VALUE).all():  # false for NaN
        raise InvalidParameter(
            f"the tensor is no image: put back to pixels, it has values beyond {_MAX_VALUE}"
        )
    return [PreparedImage(plan, (view,)) for plan in plans]
