"""What an image brings to a batch: its canvases, decoded once."""

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

_FAR = 1000  # of pixels, which are 0 to 255; much more has no meaning, and would overflow float16

Unrounded = npt.NDArray[np.float32]  # (side, side, 3) RGB in pixel units


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """What an image brings for one member: its canvases and the views to cut from them."""

    plan: Plan
    canvases: tuple[Pixels | Unrounded, ...]
    size: tuple[int, int] = (1, 1)  # the image's width and height, or a part of both
    target: int = 0  # the class that maps are of


def prepare(
    image: ImageInput, plans: Sequence[Plan], bounds: Bounds, target: int = 0
) -> list[PreparedImage]:
    """Decode once and cut each plan's canvases; members with one plan share them.

    Raises what `images.decode` does.
    """
    upright = _upright(image, plans, bounds)
    size = upright.size
    made = {
        plan: PreparedImage(plan, crops.canvases(upright, plan), size, target) for plan in plans
    }
    return [made[plan] for plan in plans]


def _upright(image: ImageInput, plans: Sequence[Plan], bounds: Bounds) -> Image.Image:
    if isinstance(image, np.ndarray):
        return image_decoder.decoded(
            image.astype(np.uint8, copy=False), max_pixels=bounds.max_pixels
        )
    enough = max(plan.enough for plan in plans)
    return image_decoder.decode(
        image,
        max_pixels=bounds.max_pixels,
        seconds=bounds.seconds,
        enough=enough,
        heic=bounds.heic,
    )


def unscaled(tensor: npt.NDArray[np.float32], scaled: Preprocessing) -> Unrounded:
    """Put what a network takes, (3, 224, 224), back to RGB pixels, (224, 224, 3)."""
    mean, scale = (np.array(each, np.float32) for each in (scaled.mean, scaled.scale))
    with np.errstate(all="ignore"):  # `given` looks at what comes of it
        pixels = tensor.transpose(1, 2, 0) / scale + mean
    return np.ascontiguousarray(pixels[..., ::-1] if scaled.channels == "BGR" else pixels)


def given(view: Unrounded, plans: Sequence[Plan]) -> list[PreparedImage]:
    """Take a view as it is; raises `InvalidParameter` if it is none, or a plan wants others."""
    if any(plan.side != len(view) or len(plan.views) > 1 for plan in plans):
        raise InvalidParameter("a tensor is one view of an image; ask for the views `single`")
    if not (np.abs(view) <= _FAR).all():  # nor is what is no number
        raise InvalidParameter(
            f"the tensor is no image: put back to pixels, it has values beyond {_FAR}"
        )
    return [PreparedImage(plan, (view,)) for plan in plans]
