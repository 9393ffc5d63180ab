"""Convert colours from an ICC profile to sRGB, as browsers do."""

import io
import struct
from functools import lru_cache

from PIL import Image, ImageCms

MAX_BYTES = 4 << 20  # of a profile; those of printing presses have up to 3 MB
_SMALL = 65_536  # bytes; profiles of cameras and screens
_CACHED, _CACHED_LARGE = 64, 2  # transforms; making one takes 3 to 6 ms, or 25 ms for CMYK
_HEAD = 128  # bytes before the tag table
_MAX_TAGS = 100
_TOLERANCE = 2  # of 255: a profile that changes no more is treated as sRGB

_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_TO_RGB = {"1", "L", "P", "RGB", "YCbCr"}
# White point, matrix and curves, or the lookup table of the first intent. Other tags, such as
# multi-process elements, may take any time to compute.
_TAGS = {b"wtpt", b"chad", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC", b"kTRC", b"A2B0"}
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, struct.error)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image without alpha to RGB, and from its profile's colour space to sRGB.

    A profile that is broken, over 4 MiB or for another kind of colours is ignored.
    """
    mode = _MODES.get(profile[16:20])
    is_applicable = image.mode == mode or (mode == "RGB" and image.mode in _TO_RGB)
    if is_applicable and mode is not None and len(profile) <= MAX_BYTES:
        transform_of = _small_transform if len(profile) <= _SMALL else _large_transform
        transform = transform_of(profile, mode)
        if transform is not None:
            return transform.apply(image if image.mode == mode else image.convert(mode))
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make the transform to sRGB; None for a broken profile or one that changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(_trimmed(profile)))
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        return transform if mode == "CMYK" or _changes(transform, mode) else None
    except _BROKEN:
        return None


_small_transform = lru_cache(_CACHED)(_transform)
_large_transform = lru_cache(_CACHED_LARGE)(_transform)


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform of grey or RGB visibly changes any of some sample colours."""
    steps = range(0, 256, 51)
    colours = (
        bytes(range(256))
        if mode == "L"
        else bytes(
            value
            for red in steps
            for green in steps
            for blue in steps
            for value in (red, green, blue)
        )
    )
    sample = Image.frombytes(mode, (len(colours) // len(mode), 1), colours)
    before, after = sample.convert("RGB").tobytes(), transform.apply(sample).tobytes()
    return any(abs(old - new) > _TOLERANCE for old, new in zip(before, after, strict=True))


def _trimmed(profile: bytes) -> bytes:
    """Remove the tags that are not used, and duplicates, without moving the rest."""
    (count,) = struct.unpack_from(">I", profile, _HEAD)
    if count > _MAX_TAGS:
        raise ValueError("too many tags")
    table: dict[bytes, bytes] = {}
    for number in range(count):
        entry = profile[_HEAD + 4 + 12 * number :][:12]
        if entry[:4] in _TAGS:
            table.setdefault(entry[:4], entry)
    tags = b"".join(table.values()).ljust(12 * count, b"\0")
    end = _HEAD + 4 + 12 * count
    return profile[:_HEAD] + struct.pack(">I", len(table)) + tags + profile[end:]
