"""Decode bytes to an upright RGB image.

An invalid image fails here, before it is in a batch with others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from service.imaging import file_kinds, heif, jpeg_segments, pillow_decoder, rgb, sanitizer
from service.imaging.pillow_decoder import BROKEN
from service.imaging.sanitized_file import Sanitized
from service.settings import Settings

MEDIA_TYPES = tuple(
    f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
)

ImageInput = bytes | npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""An encoded image; a decoded one, (H, W, 3) uint8 RGB; or a view, (3, 224, 224) float32.

The last is the network's own input, cropped and scaled by the client.
"""


@dataclass(frozen=True)  # without slots; see `service.worker.messages`
class Bounds:
    """The limits of decoding; `service.settings` describes each."""

    max_pixels: int
    seconds: float = math.inf
    heic: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return those of the settings; raises `WrongOption` if HEIC's extra is missing."""
        if settings.heic:
            heif.require()
        return cls(settings.max_pixels, settings.decode_timeout_seconds, settings.heic)


def decode(
    data: bytes,
    *,
    max_pixels: int,
    seconds: float = math.inf,
    min_side: int | None = None,
    heic: bool = False,
) -> Image.Image:
    """Decode the first frame to an upright RGB image, transparent pixels over white.

    A JPEG whose short side is at least 2, 4 or 8 times `min_side` pixels is decoded at that
    fraction of its size, which is faster.

    The format is detected from the bytes, never from a name or a header. `heic` enables HEIC,
    which needs the extra of that name. Raises `UnsupportedType`, `TooLarge` or `UnreadableImage`.

    Bounded are: the image's size, before any pixel is decoded (a JPEG's as it is decoded, and
    `JPEG_HEADER_FACTOR` times as many pixels in its header); the decoder's passes over the pixels
    (`MAX_PASSES` times `max_pixels` in total); the reads of the file; the memory, about 24 bytes
    for each of `max_pixels`; and this thread's time, checked at Pillow's reads, which for JPEG,
    PNG, GIF and raw TIFF are 64 KiB or less. Not bounded is the time of one call to libwebp,
    libtiff, libavif or libheif, which decode in one call, and of the conversion to RGB; both
    depend on the number of pixels only, so `max_pixels` bounds them.
    """
    kind = file_kinds.sniff(data, heic=heic)
    load = partial(pillow_decoder.load, max_pixels=max_pixels, seconds=seconds)
    try:
        file = sanitizer.sanitize(data, kind)
        if file.tail is not None:
            _check_complete(file, file.tail, load)
        image = load(file, min_side=min_side)
        transpose = pillow_decoder.upright_transpose(image, file)
        flat = rgb.flatten(image, file, lambda: load(file, is_lower=True))
        return flat.transpose(transpose) if transpose is not None else flat
    except BROKEN as error:
        raise pillow_decoder.unreadable(kind) from error


def _check_complete(file: Sanitized, tail: int, load: Callable[[Sanitized], Image.Image]) -> None:
    """Refuse a JPEG without an end marker that lacks more than `tail` bytes before it."""
    first, second = (
        load(replace(file, data=data)) for data in jpeg_segments.endings(file.data, tail)
    )
    if ImageChops.difference(first, second).getbbox() is not None:
        raise pillow_decoder.unreadable("JPEG")


def is_view(image: ImageInput) -> TypeGuard[npt.NDArray[np.float32]]:
    """Return whether an image is a view, the network's own input."""
    return isinstance(image, np.ndarray) and image.dtype == np.float32


def from_pixels(pixels: npt.NDArray[np.uint8], *, max_pixels: int) -> Image.Image:
    """Make an image of decoded pixels, (H, W, 3) uint8 RGB. Raises `TooLarge`."""
    height, width, _ = pixels.shape
    pillow_decoder.check_size((width, height), max_pixels)
    return Image.fromarray(pixels)
