"""A sanitized image file to the pixels that it holds, in its own mode, within the bounds."""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from service.errors import ServiceError, TooLarge, UnreadableImage
from service.imaging import png
from service.imaging.metered_file import MeteredFile
from service.imaging.sanitized_file import Sanitized, refusal

PASSES = 16  # a progressive photo has about 10 scans
LARGER = 6  # times the most pixels that are decoded: what the header of a JPEG may say

_PILLOWS = 178_956_970  # pixels, over which Pillow decodes no TIFF and no WebP
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
_XMP = ("xmp", "XML:com.adobe.xmp")  # where Pillow would look for an orientation as well


def _heif(file: MeteredFile) -> ImageFile.ImageFile:
    """Open a HEIC, with the extra that reads it."""
    from pillow_heif import HeifImageFile, options  # noqa: PLC0415 - it may not be installed

    options.DECODE_THREADS = 1  # as of AVIF
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    opened: ImageFile.ImageFile = HeifImageFile(file)
    return opened


# Not `Image.open`: it has a bound on the pixels of its own, for all of the process.
_OPEN: Mapping[str, Callable[[MeteredFile], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIF": _heif,
}
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # Pillow takes no argument for it; images have threads

# What Pillow's decoders are known to raise on broken input, besides its own errors.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,  # of libavif
    struct.error,
    Warning,  # where the process makes errors of them
    zlib.error,
)


def load(
    said: Sanitized,
    *,
    max_pixels: int,
    seconds: float,
    enough: int | None = None,
    is_lower: bool = False,
) -> Image.Image:
    """Decode a file, or what is left of it.

    With `is_lower` a PNG of 16 bits gives the lower 8 of each colour instead of the upper.
    Raises `TooLarge`, `UnreadableImage`, or `UnsupportedType` for what no decoder here reads.
    """
    check_size(said.buffer, max_pixels)
    with _refusing(said, is_whole=bool(said.variant)):
        image = _OPEN[said.kind](MeteredFile(said.data, seconds))
    _check_work(said, image, max_pixels)
    with _refusing(said, is_whole=said.kind == "JPEG" and bool(said.variant)):
        if enough is not None and said.is_scaled:
            image.draft(None, (enough, enough))  # for JPEG only; nothing for the others
        check_size(image.size, max_pixels)
        _forget_metadata(image)
        if is_lower:
            image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
    return image


@contextmanager
def _refusing(said: Sanitized, *, is_whole: bool) -> Iterator[None]:
    """Say what is wrong with a file: that it is broken, or whole and of a kind that is not read."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image is over {_PILLOWS} pixels") from error
    except BROKEN as error:
        raise refusal(said.kind, said.variant) if is_whole else unreadable(said.kind) from error


def upright(image: Image.Image, said: Sanitized) -> Image.Transpose | None:
    """Say how a loaded image is to be turned, by its EXIF; not where that makes no sense."""
    if said.kind == "TIFF":
        return _UPRIGHT.get(said.orientation)
    for name in _XMP:
        image.info.pop(name, None)
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except BROKEN:
        return None  # a camera's broken EXIF block is no reason to refuse its image


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse more pixels, by raising `TooLarge`."""
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(f"{width}x{height} is over {max_pixels} pixels")


def unreadable(kind: str) -> ServiceError:
    """Say that an image is broken."""
    return UnreadableImage(f"the {kind} image is broken or cut short; send it whole")


def _check_work(said: Sanitized, image: Image.Image, max_pixels: int) -> None:
    """Refuse what would be large before it is made smaller, or is gone over very often."""
    check_size(image.size, max_pixels * (LARGER if said.kind == "JPEG" else 1))
    pixels = image.width * image.height
    if max(pixels * said.passes, said.pixels) > PASSES * max_pixels:
        passes = max(said.passes, said.pixels / (pixels or 1))
        raise TooLarge(
            f"{image.width}x{image.height} in {passes:g} passes is over"
            f" {PASSES} times {max_pixels} pixels"
        )


def _forget_metadata(image: Image.Image) -> None:
    """Leave out an EXIF of a WebP that is too long: Pillow would read all before that tag."""
    if len(image.info.get("exif") or b"") > png.MOST_METADATA:
        image.info["exif"] = b""
