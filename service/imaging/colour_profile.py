"""Colours by an ICC profile to sRGB, as a browser shows them."""

import io
import struct
from functools import lru_cache

from PIL import Image, ImageCms

MOST = 4 << 20  # bytes of a profile; those of printing presses have up to 3 MB
_SMALL = 65_536  # bytes; of cameras and screens
_KEPT, _KEPT_LARGE = 64, 2  # transforms; to make one takes 3 to 6 ms, or 25 ms of CMYK
_HEAD = 128  # bytes before the table of tags
_MOST_TAGS = 100
_ALIKE = 2  # of 255: what a profile may change that is as good as sRGB

_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_TO_RGB = {"1", "L", "P", "RGB", "YCbCr"}
# White, matrix and curves, or the table of the first intent. Others, such as chains of elements,
# may take any time to compute.
_TAGS = {b"wtpt", b"chad", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC", b"kTRC", b"A2B0"}
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, struct.error)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Make an image without alpha RGB, in sRGB if its profile says that it is in another space.

    A profile that is broken, of other colours than the image's or over 4 MiB is ignored.
    """
    mode = _MODES.get(profile[16:20])
    is_meant = image.mode == mode or (mode == "RGB" and image.mode in _TO_RGB)
    if is_meant and mode is not None and len(profile) <= MOST:
        make = _small_transform if len(profile) <= _SMALL else _large_transform
        transform = make(profile, mode)
        if transform is not None:
            return transform.apply(image if image.mode == mode else image.convert(mode))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make what turns this profile's colours into sRGB; nothing where that changes nothing."""
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


_small_transform = lru_cache(_KEPT)(_transform)
_large_transform = lru_cache(_KEPT_LARGE)(_transform)


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether a transform of grey or RGB changes any of some colours visibly."""
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
    plain, turned = sample.convert("RGB").tobytes(), transform.apply(sample).tobytes()
    return any(abs(one - other) > _ALIKE for one, other in zip(plain, turned, strict=True))


def _trimmed(profile: bytes) -> bytes:
    """Leave of a profile the tags that are used, each once, where they are."""
    (count,) = struct.unpack_from(">I", profile, _HEAD)
    if count > _MOST_TAGS:
        raise ValueError("too many tags")
    table: dict[bytes, bytes] = {}
    for number in range(count):
        entry = profile[_HEAD + 4 + 12 * number :][:12]
        if entry[:4] in _TAGS:
            table.setdefault(entry[:4], entry)
    tags = b"".join(table.values()).ljust(12 * count, b"\0")
    behind = _HEAD + 4 + 12 * count
    return profile[:_HEAD] + struct.pack(">I", len(table)) + tags + profile[behind:]
