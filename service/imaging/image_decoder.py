"""Bytes to an upright RGB image.

Everything an image can do wrong it does here, alone, before it shares a batch with anyone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from service.errors import TooLarge
from service.imaging import file_kinds, jpeg, pillow_decoder, rgb, sanitizer
from service.imaging.pillow_decoder import BROKEN
from service.imaging.sanitized_file import Sanitized

MEDIA_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"),
    "image/avif",
)

ImageInput = bytes | npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""An image as it may come: encoded; decoded, (H, W, 3) RGB; or as a network takes it.

The last is a view that somebody else has cut and scaled, (3, 224, 224) float32.
"""

PASSES, LARGER = pillow_decoder.PASSES, pillow_decoder.LARGER


@dataclass(frozen=True, slots=True)
class Bounds:
    """What decoding an image may cost; see `service.settings` for each."""

    max_pixels: int
    seconds: float = math.inf
    heic: bool = False


def decode(
    data: bytes,
    *,
    max_pixels: int,
    seconds: float = math.inf,
    enough: int | None = None,
    heic: bool = False,
) -> Image.Image:
    """Decode the first frame, turn it upright and make it RGB (transparent over white).

    A JPEG whose short side is at least twice, 4 or 8 times the pixels that are `enough` comes
    out at that fraction of its size: the decoder then computes fewer pixels.

    The format is told by the bytes, never by a name or a header. HEIC is read if `heic` says so,
    which needs the extra of that name. Raises `UnsupportedType`,
    `TooLarge` or `UnreadableImage`.

    What is bounded: the image's size, before any pixel is decoded, where of a JPEG those
    pixels count that come out, and `LARGER` times as many that its header says; how often a
    decoder goes over the pixels (`PASSES` times `max_pixels` in all); how often it reads the
    file; the memory, about 24 bytes of each of `max_pixels`; and the time of this thread, looked
    at whenever Pillow reads, which for JPEG, PNG, GIF and raw TIFF is every 64 KiB or less. What
    is not: the time of one call to libwebp, libtiff, libavif or libheif, which decode in one go,
    and of making RGB. Both grow with the pixels alone, so `max_pixels` bounds them.
    """
    kind = file_kinds.sniff(data, heic=heic)
    load = partial(pillow_decoder.load, max_pixels=max_pixels, seconds=seconds)
    try:
        said = sanitizer.sift(data, kind)
        if said.tail is not None:
            _check_whole(said, said.tail, load)
        image = load(said, enough=enough)
        turn = pillow_decoder.upright(image, said)
        flat = rgb.flatten(image, said, lambda: load(said, is_lower=True))
        return flat.transpose(turn) if turn is not None else flat
    except BROKEN as error:
        raise pillow_decoder.unreadable(kind) from error


def _check_whole(said: Sanitized, tail: int, load: Callable[[Sanitized], Image.Image]) -> None:
    """Refuse a JPEG without an end marker that lacks more than so many bytes before it."""
    one, other = (load(replace(said, data=data)) for data in jpeg.endings(said.data, tail))
    if ImageChops.difference(one, other).getbbox() is not None:
        raise pillow_decoder.unreadable("JPEG")


def is_view(image: ImageInput) -> TypeGuard[npt.NDArray[np.float32]]:
    """Tell whether an image comes as a network takes it."""
    return isinstance(image, np.ndarray) and image.dtype == np.float32


def decoded(pixels: npt.NDArray[np.uint8], *, max_pixels: int) -> Image.Image:
    """Take an image that somebody else has decoded: (H, W, 3) RGB. Raises `TooLarge`."""
    height, width, _ = pixels.shape
    if width * height > max_pixels:
        raise TooLarge(f"{width}x{height} is over {max_pixels} pixels")
    return Image.fromarray(pixels)
