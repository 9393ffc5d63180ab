"""Bytes to an upright RGB picture.

Everything a picture can do wrong it does here, alone, before it shares a batch with anyone.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import (
    Image,
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401 - registers itself; else Pillow would import all its formats
)

from service import sieve
from service.errors import TooLarge, UnreadableImage, UnsupportedType
from service.metered import MeteredFile

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")

Picture = bytes | npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""A picture as it may come: encoded; decoded, (H, W, 3) RGB; or as a network takes it.

The last is a view that somebody else has cut and scaled, (3, 224, 224) float32.
"""

PASSES = 16  # a progressive photo has about 10 scans

_ROW = 1 << 20  # pixels
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}

# What Pillow's decoders are known to raise on broken input, besides its own errors.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Warning,  # where the process makes errors of them
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What decoding a picture may cost; see `service.settings` for each."""

    max_pixels: int
    seconds: float = math.inf


def decode(
    data: bytes, *, max_pixels: int, seconds: float = math.inf, enough: int | None = None
) -> Image.Image:
    """Decode the first frame, turn it upright and make it RGB (alpha over white).

    A JPEG whose short side is at least twice, 4 or 8 times the pixels that are `enough` comes
    out at that fraction of its size: the decoder then computes fewer pixels.

    The format is told by the bytes, never by a name or a header. Colour profiles are ignored, as
    the training of these networks did. Raises `UnsupportedType`, `TooLarge` or `UnreadableImage`.

    What is bounded: the picture's size, before any pixel is decoded; how often a decoder goes
    over the pixels (`PASSES` times `max_pixels` in all); how often it reads the file; the memory,
    about 24 bytes a pixel; and the time of this thread, looked at whenever Pillow reads, which
    for JPEG, PNG, GIF and raw TIFF is every 64 KiB or less. What is not: the time of one call to
    libwebp or libtiff, which decode in one go, and of making RGB. Both grow with the pixels
    alone, so `max_pixels` bounds them.
    """
    kind = sniff(data)
    try:
        sifted = sieve.sift(data, kind)
        _check_size(sifted.buffer, max_pixels)
        picture = Image.open(MeteredFile(sifted.data, seconds), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture is over {max_pixels} pixels") from error
    except _BROKEN as error:
        raise _unreadable(kind) from error
    _check_size(picture.size, max_pixels)
    if picture.width * picture.height * sifted.passes > PASSES * max_pixels:
        raise TooLarge(
            f"{picture.width}x{picture.height} in {sifted.passes:g} passes is over"
            f" {PASSES} times {max_pixels} pixels"
        )
    try:
        _forget_metadata(picture)
        if enough is not None:
            picture.draft(None, (enough, enough))  # for JPEG only; nothing for the others
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture))
        upright = picture.transpose(turn) if turn is not None else picture
        return _rgb(upright)
    except _BROKEN as error:
        raise _unreadable(kind) from error


def is_view(picture: Picture) -> TypeGuard[npt.NDArray[np.float32]]:
    """Tell whether a picture comes as a network takes it."""
    return isinstance(picture, np.ndarray) and picture.dtype == np.float32


def decoded(pixels: npt.NDArray[np.uint8], *, max_pixels: int) -> Image.Image:
    """Take a picture that somebody else has decoded: (H, W, 3) RGB. Raises `TooLarge`."""
    height, width, _ = pixels.shape
    _check_size((width, height), max_pixels)
    return Image.fromarray(pixels)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(f"{width}x{height} is over {max_pixels} pixels")


def _unreadable(kind: str) -> UnreadableImage:
    return UnreadableImage(f"the {kind} picture is broken or cut short; send it whole")


def sniff(data: bytes) -> str:
    """Name Pillow's format by the first bytes; raises `UnsupportedType`."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    raise UnsupportedType("not a JPEG, PNG, WebP, GIF, BMP or TIFF picture")


def _forget_metadata(picture: Image.Image) -> None:
    """Leave of the EXIF only which way is up.

    Pillow would read all that is in a TIFF, and all that a WebP's says before the first tag.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        value = picture.tag_v2.get(_ORIENTATION)
        exif = Image.Exif()
        if value in _UPRIGHT:
            exif[_ORIENTATION] = value
        picture.info["exif"] = exif.tobytes() if value in _UPRIGHT else b""
    elif len(picture.info.get("exif", b"")) > sieve.MOST_METADATA:
        picture.info["exif"] = b""


def _orientation(picture: Image.Image) -> int:
    """Read the EXIF orientation, 1 (upright) where there is none or it makes no sense."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1  # a camera's broken EXIF block is no reason to refuse its picture
    return value if isinstance(value, int) else 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode in _ALPHA or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        over = Image.new("RGB", rgba.size, "white")
        over.paste(rgba, mask=rgba)
        return over
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a 16- or 32-bit grey picture to 8 bits, which Pillow would clip."""
    grey = np.asarray(picture).ravel()
    black, white = _range(grey) if picture.mode == "F" else (0.0, 65535.0)
    shallow = np.empty(grey.shape, np.uint8)
    for start in range(0, grey.size, _ROW):  # by parts: they are 8 bytes a pixel meanwhile
        with np.errstate(invalid="ignore"):  # of numbers that are none
            part = grey[start : start + _ROW].astype(np.float64)
        part = np.nan_to_num(part, copy=False, nan=black, posinf=white, neginf=black)
        share = (part - black) / ((white - black) or 1.0)
        shallow[start : start + _ROW] = (share * 255).clip(0, 255).round()
    return Image.fromarray(shallow.reshape(picture.height, picture.width))


def _range(grey: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Find black and white among floats: no format says what they are, so the extremes are."""
    black, white = math.inf, -math.inf
    for start in range(0, grey.size, _ROW):
        part = grey[start : start + _ROW]
        finite = part[np.isfinite(part)]
        if finite.size:
            black, white = min(black, float(finite.min())), max(white, float(finite.max()))
    return (black, white) if black <= white else (0.0, 1.0)
