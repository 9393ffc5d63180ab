"""Decoded pixels of any kind to 8-bit RGB, over white."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging import colour_profile
from service.imaging.sanitized_file import Samples, Sanitized, refusal

Mask = npt.NDArray[np.bool_]

_ROW = 1 << 20  # pixels
_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
_SHALLOW = 256  # greys of 8 bits
_DEEP = 1 << 32  # greys of 32 bits


def flatten(image: Image.Image, said: Sanitized, lower: Callable[[], Image.Image]) -> Image.Image:
    """Make a loaded image RGB; what is transparent, or not drawn at all, becomes white.

    `lower` decodes the lower 8 of the 16 bits of each colour, which Pillow leaves out.
    """
    clear = _clear(image, said, lower) if said.transparent else None
    profile = said.profile or image.info.get("icc_profile") or b""
    rgb = _rgb(_shallow(image, said), profile)
    if clear is not None:
        rgb.paste("white", mask=Image.fromarray(clear))
    if said.frame is not None and said.frame != (0, 0, *rgb.size):
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(said.frame), said.frame)
        return canvas
    return rgb


def _clear(image: Image.Image, said: Sanitized, lower: Callable[[], Image.Image]) -> Mask:
    """Find the pixels, (height, width), that have the one colour that is transparent."""
    if image.mode == "I;16":
        deep: Mask = np.asarray(image) == said.transparent[0]
        return deep
    if said.bits > 8:  # noqa: PLR2004 - bits that Pillow keeps
        high, low = (tuple(value >> shift & 0xFF for value in said.transparent) for shift in (8, 0))
        return _equal(image, high) & _equal(lower(), low)
    scale = 255 // ((1 << said.bits) - 1)
    return _equal(image, tuple(value * scale for value in said.transparent))


def _equal(image: Image.Image, colour: tuple[int, ...]) -> Mask:
    bands = [
        np.asarray(band.convert("L")) == value
        for band, value in zip(image.split(), colour, strict=True)
    ]
    both: Mask = np.logical_and.reduce(bands)
    return both


def _shallow(image: Image.Image, said: Sanitized) -> Image.Image:
    """Make samples of 8 bits, unsigned."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image, said.samples)
    if said.samples.offset:
        return image.point([(value + said.samples.offset) % _SHALLOW for value in range(_SHALLOW)])
    return image


def _rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Make 8-bit pixels RGB, by their profile, and put them over white."""
    if image.mode not in _ALPHA and "transparency" not in image.info:
        return colour_profile.to_srgb(image, profile)
    is_grey = image.mode in {"1", "L", "LA", "La"}
    rgba = image.convert("RGBA")
    colours = colour_profile.to_srgb(rgba.convert("L" if is_grey else "RGB"), profile)
    over = Image.new("RGB", rgba.size, "white")
    over.paste(colours, mask=rgba.getchannel("A"))
    return over


def _eight_bits(image: Image.Image, samples: Samples) -> Image.Image:
    """Scale a 16- or 32-bit grey image to 8 bits, which Pillow would clip."""
    grey = np.asarray(image).ravel()
    if samples.white is not None and samples.white >= _DEEP - 1:
        grey = grey.view(np.uint32)  # which Pillow takes for signed
    black, white = samples.black, samples.white
    if black is None or white is None:
        black, white = _range(grey)
    elif white - black >= _DEEP - 1:
        _check_range(grey)
    if samples.is_inverted:
        black, white = white, black
    shallow = np.empty(grey.shape, np.uint8)
    for start in range(0, grey.size, _ROW):  # by parts: they are 8 bytes a pixel meanwhile
        with np.errstate(invalid="ignore"):  # of numbers that are none
            part = grey[start : start + _ROW].astype(np.float64)
        part = np.nan_to_num(
            part, copy=False, nan=black, posinf=max(black, white), neginf=min(black, white)
        )
        share = (part - black) / ((white - black) or 1.0)
        shallow[start : start + _ROW] = (share * 255).clip(0, 255).round()
    return Image.fromarray(shallow.reshape(image.height, image.width))


def _check_range(grey: npt.NDArray[np.generic]) -> None:
    """Refuse 32-bit integers that would all be one grey: they are meant in some other range."""
    lowest, highest = int(grey.min()), int(grey.max())
    if 0 < highest - lowest < _DEEP // _SHALLOW:
        variant = f"32-bit grey that runs from {lowest} to {highest} only"
        raise refusal("TIFF", variant, "save it with 16 bits")


def _range(grey: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Find black and white among floats: no format says what they are, so the extremes are."""
    black, white = math.inf, -math.inf
    for start in range(0, grey.size, _ROW):
        part = grey[start : start + _ROW]
        finite = part[np.isfinite(part)]
        if finite.size:
            black, white = min(black, float(finite.min())), max(white, float(finite.max()))
    return (black, white) if black <= white else (0.0, 1.0)
