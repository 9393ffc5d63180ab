"""Batches of real views for executors."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.engine.prepared_image import PreparedImage
from service.imaging import crops
from service.imaging.crops import Resize
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Slice

WARP, SHORT = Resize("warp", 256), Resize("short", 256)


def noise(seed: int, width: int = 300, height: int = 260) -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def cuts(image: Image.Image, name: str, resize: Resize = WARP) -> PreparedImage:
    """An image prepared for a view plan."""
    plan = crops.plan(name, resize)
    return PreparedImage(plan, crops.canvases(image, plan))


def plain(pixels: npt.NDArray[np.uint8 | np.float32]) -> PreparedImage:
    """A view given as pixels, (224, 224, 3), prepared."""
    return PreparedImage(crops.plan("single", WARP), (pixels,))


def whole(payload: PreparedImage) -> Slice[PreparedImage]:
    """A slice of all its views."""
    return Slice(payload, 0, len(payload.plan.views))


def batch(*slices: Slice[PreparedImage], size: int = 0, member: int = 0) -> Batch[PreparedImage]:
    """A batch of slices, padded to a size if it is not 0."""
    rows = sum(part.rows for part in slices)
    key = Key(member, slices[0].payload.plan.side)
    return Batch(key, size or rows, slices, "full")


def asking(payload: PreparedImage, view: int = 0) -> Batch[PreparedImage]:
    """A batch for the class activation map of one view."""
    key = Key(0, payload.plan.side, maps=True)
    return Batch(key, 1, (Slice(payload, view, view + 1),), "full")


def expected_views(part: Slice[PreparedImage]) -> list[npt.NDArray[np.uint8]]:
    """A slice's views, cut one by one."""
    views = []
    for view in part.payload.plan.views[part.start : part.stop]:
        canvas = part.payload.canvases[view.canvas]
        square = canvas[view.top : view.top + view.side, view.left : view.left + view.side]
        views.append(square[:, ::-1] if view.mirror else square)
    return views
