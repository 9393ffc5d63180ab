"""Convert decoded pixels of any mode to 8-bit RGB over white."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging import colour_profile
from service.imaging.sanitized_file import Samples, Sanitized, unsupported

Mask = npt.NDArray[np.bool_]

_CHUNK = 1 << 20  # pixels
_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
_SHALLOW = 256  # greys of 8 bits
_DEEP = 1 << 32  # greys of 32 bits


def flatten(image: Image.Image, file: Sanitized, lower: Callable[[], Image.Image]) -> Image.Image:
    """Convert a loaded image to RGB; transparent pixels and those outside the frame become white.

    `lower` decodes the lower 8 of the 16 bits of each colour, which Pillow discards.
    """
    mask = _transparent_mask(image, file, lower) if file.transparent else None
    profile = file.profile or image.info.get("icc_profile") or b""
    rgb = _rgb(_eight_bit(image, file), profile)
    if mask is not None:
        rgb.paste("white", mask=Image.fromarray(mask))
    if file.frame is not None and file.frame != (0, 0, *rgb.size):
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(file.frame), file.frame)
        return canvas
    return rgb


def _transparent_mask(
    image: Image.Image, file: Sanitized, lower: Callable[[], Image.Image]
) -> Mask:
    """Return which pixels have the file's transparent colour: (height, width)."""
    if image.mode == "I;16":
        mask: Mask = np.asarray(image) == file.transparent[0]
        return mask
    if file.bits > 8:  # noqa: PLR2004 - bits that Pillow keeps
        high, low = (tuple(value >> shift & 0xFF for value in file.transparent) for shift in (8, 0))
        return _equal(image, high) & _equal(lower(), low)
    scale = 255 // ((1 << file.bits) - 1)
    return _equal(image, tuple(value * scale for value in file.transparent))


def _equal(image: Image.Image, colour: tuple[int, ...]) -> Mask:
    bands = [
        np.asarray(band.convert("L")) == value
        for band, value in zip(image.split(), colour, strict=True)
    ]
    mask: Mask = np.logical_and.reduce(bands)
    return mask


def _eight_bit(image: Image.Image, file: Sanitized) -> Image.Image:
    """Convert samples to 8 bits, unsigned."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, file.samples)
    if file.samples.offset:
        return image.point([(value + file.samples.offset) % _SHALLOW for value in range(_SHALLOW)])
    return image


def _rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert 8-bit pixels to RGB by their profile, over white."""
    if image.mode not in _ALPHA and "transparency" not in image.info:
        return colour_profile.to_srgb(image, profile)
    is_grey = image.mode in {"1", "L", "LA", "La"}
    rgba = image.convert("RGBA")
    colours = colour_profile.to_srgb(rgba.convert("L" if is_grey else "RGB"), profile)
    over = Image.new("RGB", rgba.size, "white")
    over.paste(colours, mask=rgba.getchannel("A"))
    return over


def _scaled(image: Image.Image, samples: Samples) -> Image.Image:
    """Scale a 16- or 32-bit grey image to 8 bits; Pillow would clip it."""
    grey = np.asarray(image).ravel()
    if samples.white is not None and samples.white >= _DEEP - 1:
        grey = grey.view(np.uint32)  # Pillow reads it as signed
    black, white = samples.black, samples.white
    if black is None or white is None:
        black, white = _finite_range(grey)
    elif white - black >= _DEEP - 1:
        _check_range(grey)
    if samples.is_inverted:
        black, white = white, black
    scaled = np.empty(grey.shape, np.uint8)
    for start in range(0, grey.size, _CHUNK):  # in chunks, as float64 takes 8 bytes a pixel
        with np.errstate(invalid="ignore"):  # of NaN
            part = grey[start : start + _CHUNK].astype(np.float64)
        part = np.nan_to_num(
            part, copy=False, nan=black, posinf=max(black, white), neginf=min(black, white)
        )
        fraction = (part - black) / ((white - black) or 1.0)
        scaled[start : start + _CHUNK] = (fraction * 255).clip(0, 255).round()
    return Image.fromarray(scaled.reshape(image.height, image.width))


def _check_range(grey: npt.NDArray[np.generic]) -> None:
    """Refuse 32-bit integers that would all become one grey: their range is unknown."""
    lowest, highest = int(grey.min()), int(grey.max())
    if 0 < highest - lowest < _DEEP // _SHALLOW:
        variant = f"32-bit grey with values from {lowest} to {highest} only"
        raise unsupported("TIFF", variant, "save it with 16 bits")


def _finite_range(grey: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Return the finite minimum and maximum of floats, for which no format defines a range."""
    black, white = math.inf, -math.inf
    for start in range(0, grey.size, _CHUNK):
        part = grey[start : start + _CHUNK]
        finite = part[np.isfinite(part)]
        if finite.size:
            black, white = min(black, float(finite.min())), max(white, float(finite.max()))
    return (black, white) if black <= white else (0.0, 1.0)
