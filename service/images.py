"""Bytes to an upright RGB picture.

Everything a picture can do wrong it does here, alone, before it shares a batch with anyone.
"""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import TooLarge, UnreadableImage, UnsupportedType

MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")

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


def decode(data: bytes, *, max_pixels: int, enough: int | None = None) -> Image.Image:
    """Decode the first frame, turn it upright and make it RGB (alpha over white).

    A JPEG whose short side is at least twice, 4 or 8 times the pixels that are `enough` comes
    out at that fraction of its size: the decoder then computes fewer pixels.

    The format is told by the bytes, never by a name or a header. The picture's size is checked
    before any pixel is decoded. Colour profiles are ignored, as the training of these networks
    did. Raises `UnsupportedType`, `TooLarge` or `UnreadableImage`.
    """
    kind = _sniff(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture is over {max_pixels} pixels") from error
    except _BROKEN as error:
        raise _unreadable(kind) from error
    if picture.width * picture.height > max_pixels:
        raise TooLarge(f"{picture.width}x{picture.height} is over {max_pixels} pixels")
    try:
        if enough is not None:
            picture.draft(None, (enough, enough))  # for JPEG only; nothing for the others
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture))
        upright = picture.transpose(turn) if turn is not None else picture
        return _rgb(upright)
    except _BROKEN as error:
        raise _unreadable(kind) from error


def _unreadable(kind: str) -> UnreadableImage:
    return UnreadableImage(f"the {kind} picture is broken or cut short; send it whole")


def _sniff(data: bytes) -> str:
    """Name Pillow's format by the first bytes."""
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
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a 16- or 32-bit grey picture to 8 bits, which Pillow would clip."""
    if picture.mode == "F":
        share = _share(np.asarray(picture, dtype=np.float64))
    else:
        share = np.asarray(picture, dtype=np.float32) / 65535
    return Image.fromarray((share * 255).clip(0, 255).round().astype(np.uint8))


def _share(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Put floats between 0 and 1: no format says what white is, so the brightest pixel is."""
    finite = grey[np.isfinite(grey)]
    black, white = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    grey = np.nan_to_num(grey, nan=black, posinf=white, neginf=black)
    return (grey - black) / ((white - black) or 1.0)
