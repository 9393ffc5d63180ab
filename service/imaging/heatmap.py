"""A heat map over an image, as a PNG file."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging import image_decoder
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds

MOST = 1024  # pixels of the longer side

# From what adds nothing to what adds most: how much of the image is covered, and by what.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_COVERS = (0.0, 0.15, 0.45, 0.6, 0.65)
_COLOURS = ((38, 70, 160), (38, 140, 200), (250, 210, 60), (240, 120, 30), (200, 20, 30))


def paint(image: bytes, heat: Grid, bounds: Bounds) -> bytes:
    """Draw what adds to a label, (rows, columns) float32, over the upright image.

    What takes from it is left as it is. Raises what `images.decode` does.
    """
    upright = image_decoder.decode(
        image,
        max_pixels=bounds.max_pixels,
        seconds=bounds.seconds,
        enough=MOST,
        heic=bounds.heic,
    )
    upright.thumbnail((MOST, MOST))
    shares = heat.clip(0) / max(float(heat.max()), 1e-9)
    large = Image.fromarray(np.float32(shares)).resize(upright.size, Image.Resampling.BICUBIC)
    drawn = _blend(np.asarray(upright, np.float32), np.asarray(large).clip(0, 1))
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    return file.getvalue()


def _blend(pixels: npt.NDArray[np.float32], shares: Grid) -> npt.NDArray[np.uint8]:
    """Cover (height, width, 3) pixels by as much colour as each one's share is."""
    covers = np.interp(shares, _STOPS, _COVERS)[..., None]
    channels = [np.interp(shares, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)]
    return np.round(pixels * (1 - covers) + np.stack(channels, -1) * covers).astype(np.uint8)
