"""Decode a sanitized image file with Pillow, within limits, to pixels in the file's own mode."""

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
from service.imaging import png_chunks
from service.imaging.metered_file import MeteredFile
from service.imaging.sanitized_file import Sanitized, unsupported

MAX_PASSES = 16  # a progressive photo has about 10 scans
JPEG_HEADER_FACTOR = 6  # times the maximal pixels, that a downscaled JPEG's header may have

_PILLOW_MAX_PIXELS = 178_956_970  # of a TIFF or a WebP
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = ("xmp", "XML:com.adobe.xmp")  # where Pillow looks for an orientation, too


def _heif(file: MeteredFile) -> ImageFile.ImageFile:
    """Open a HEIC."""
    from pillow_heif import HeifImageFile, options  # noqa: PLC0415 - an extra

    options.DECODE_THREADS = 1  # as for AVIF
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    opened: ImageFile.ImageFile = HeifImageFile(file)
    return opened


# Not `Image.open`: its limit on pixels is global to the process.
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
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # no argument exists; images run in parallel

# Errors of Pillow's decoders on broken input.
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
    Warning,  # where the process turns them into errors
    zlib.error,
)


def load(
    file: Sanitized,
    *,
    max_pixels: int,
    seconds: float,
    min_side: int | None = None,
    is_lower: bool = False,
) -> Image.Image:
    """Decode a file.

    With `is_lower` a 16-bit PNG gives the lower 8 bits of each colour instead of the upper 8.
    Raises `TooLarge`, `UnreadableImage`, or `UnsupportedType` for a variant without a decoder.
    """
    check_size(file.buffer, max_pixels)
    with _converted_errors(file, is_intact=bool(file.variant)):
        image = _OPEN[file.kind](MeteredFile(file.data, seconds))
    _check_work(file, image, max_pixels)
    with _converted_errors(file, is_intact=file.kind == "JPEG" and bool(file.variant)):
        if min_side is not None and file.can_downscale:
            image.draft(None, (min_side, min_side))  # JPEG only; a no-op for other formats
        check_size(image.size, max_pixels)
        _drop_long_exif(image)
        if is_lower:
            image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
    return image


@contextmanager
def _converted_errors(file: Sanitized, *, is_intact: bool) -> Iterator[None]:
    """Convert Pillow's errors: an intact file is of an unsupported variant, another is broken."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image is over {_PILLOW_MAX_PIXELS} pixels") from error
    except BROKEN as error:
        converted = unsupported(file.kind, file.variant) if is_intact else unreadable(file.kind)
        raise converted from error


def upright_transpose(image: Image.Image, file: Sanitized) -> Image.Transpose | None:
    """Return how to turn a loaded image upright, by its EXIF; None for a broken EXIF."""
    if file.kind == "TIFF":
        return _TRANSPOSES.get(file.orientation)
    for name in _XMP:
        image.info.pop(name, None)
    try:
        return _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    except BROKEN:
        return None  # a camera's broken EXIF block is no reason to refuse its image


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise `TooLarge` for more pixels."""
    width, height = size
    if width * height > max_pixels:
        raise TooLarge(f"{width}x{height} is over {max_pixels} pixels")


def unreadable(kind: str) -> ServiceError:
    """Return the error for a broken image."""
    return UnreadableImage(f"the {kind} image is broken or cut short; send it whole")


def _check_work(file: Sanitized, image: Image.Image, max_pixels: int) -> None:
    """Raise `TooLarge` for too many pixels before downscaling, or too many passes over them."""
    check_size(image.size, max_pixels * (JPEG_HEADER_FACTOR if file.kind == "JPEG" else 1))
    pixels = image.width * image.height
    if max(pixels * file.passes, file.pixels) > MAX_PASSES * max_pixels:
        passes = max(file.passes, file.pixels / (pixels or 1))
        raise TooLarge(
            f"{image.width}x{image.height} in {passes:g} passes is over"
            f" {MAX_PASSES} times {max_pixels} pixels"
        )


def _drop_long_exif(image: Image.Image) -> None:
    """Drop a WebP's overlong EXIF: Pillow would parse all tags up to the orientation."""
    if len(image.info.get("exif") or b"") > png_chunks.MAX_METADATA:
        image.info["exif"] = b""
