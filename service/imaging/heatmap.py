"""Draw a heat map over an image, as a PNG file."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging import image_decoder
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds

MAX_SIDE = 1024  # pixels of the longer side

# From no contribution to the largest: the opacity of the colour, and the colour.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_OPACITIES = (0.0, 0.15, 0.45, 0.6, 0.65)
_COLOURS = ((38, 70, 160), (38, 140, 200), (250, 210, 60), (240, 120, 30), (200, 20, 30))


def paint(image: bytes, heat: Grid, bounds: Bounds) -> bytes:
    """Draw the positive contributions to a label, (rows, columns) float32, over the upright image.

    Raises what `image_decoder.decode` does.
    """
    upright = image_decoder.decode(
        image,
        max_pixels=bounds.max_pixels,
        seconds=bounds.seconds,
        min_side=MAX_SIDE,
        heic=bounds.heic,
    )
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    fractions = heat.clip(0) / max(float(heat.max()), 1e-9)
    large = Image.fromarray(np.float32(fractions)).resize(upright.size, Image.Resampling.BICUBIC)
    drawn = _blend(np.asarray(upright, np.float32), np.asarray(large).clip(0, 1))
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    return file.getvalue()


def _blend(pixels: npt.NDArray[np.float32], fractions: Grid) -> npt.NDArray[np.uint8]:
    """Blend the colours of fractions, (height, width), over pixels, (height, width, 3)."""
    opacities = np.interp(fractions, _STOPS, _OPACITIES)[..., None]
    channels = [np.interp(fractions, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)]
    return np.round(pixels * (1 - opacities) + np.stack(channels, -1) * opacities).astype(np.uint8)
