"""Read the image sizes of an AVIF, without decoding, and remove its metadata.

libavif and dav1d decode an image in one call, and a stream may hold larger frames than the file
declares, or many that are never shown.
"""

from collections.abc import Sequence

from service.imaging import av1
from service.imaging.media_boxes import Box, boxes, items, rename_to_free
from service.imaging.sanitized_file import Sanitized, unsupported

_AV1 = b"av01"
_METADATA = {b"Exif", b"mime"}


def sanitize(data: bytes) -> Sanitized:
    """Remove metadata and animation, and compute the cost of decoding.

    `buffer` is the size of the largest frame. Raises `UnsupportedType`, or `ValueError` for a
    broken file.
    """
    outer = list(boxes(data, 0, len(data)))
    metas = [box for box in outer if box.name == b"meta"]
    movies = [box for box in outer if box.name == b"moov"]
    if not metas and movies:
        raise unsupported("AVIF", "a video without a still image")
    if len(metas) != 1:
        raise ValueError("no items")
    sizes: list[tuple[int, int]] = []
    metadata = []  # offsets
    for offset, content in items(data, metas[0]):
        if data[offset : offset + 4] == _AV1:
            sizes += av1.frames(content)
        elif data[offset : offset + 4] in _METADATA:
            metadata.append(offset)
    if not sizes:
        raise ValueError("no frames")
    largest = max(sizes, key=lambda size: size[0] * size[1])
    pixels = sum(width * height for width, height in sizes)
    return Sanitized(_still(rename_to_free(data, metadata), outer), buffer=largest, pixels=pixels)


def _still(data: bytes, outer: Sequence[Box]) -> bytes:
    """Disable an animation, so that the decoder reads the still image beside it."""
    movies = [data.rindex(b"moov", 0, box.start) for box in outer if box.name == b"moov"]
    if not movies:
        return data
    changed = bytearray(rename_to_free(data, movies))
    for box in outer:
        if box.name == b"ftyp":
            for offset in (box.start, *range(box.start + 8, box.end - 3, 4)):
                if data[offset : offset + 4] == b"avis":
                    changed[offset : offset + 4] = b"avif"
    return bytes(changed)
