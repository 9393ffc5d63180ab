"""An AVIF's images: how large they are and how many, before any is decoded.

libavif and dav1d decode an image in one go, and a stream may hold larger frames than the file
says, or many that are never shown.
"""

from collections.abc import Sequence

from service.imaging import av1
from service.imaging.media_boxes import Box, boxes, hidden, items
from service.imaging.sanitized_file import Sanitized, refusal

_AV1 = b"av01"
_METADATA = {b"Exif", b"mime"}


def sanitize(data: bytes) -> Sanitized:
    """Say what decoding takes; of an animation leave only its still image.

    Its buffer is the size of the largest frame. Raises `UnsupportedType`, or `ValueError` for
    what is broken.
    """
    outer = list(boxes(data, 0, len(data)))
    metas = [box for box in outer if box.name == b"meta"]
    films = [box for box in outer if box.name == b"moov"]
    if not metas and films:
        raise refusal("AVIF", "a video without a still image")
    if len(metas) != 1:
        raise ValueError("no items")
    sizes: list[tuple[int, int]] = []
    metadata = []
    for at, content in items(data, metas[0]):
        if data[at : at + 4] == _AV1:
            sizes += av1.frames(content)
        elif data[at : at + 4] in _METADATA:
            metadata.append(at)
    if not sizes:
        raise ValueError("no frames")
    largest = max(sizes, key=lambda size: size[0] * size[1])
    pixels = sum(width * height for width, height in sizes)
    return Sanitized(_still(hidden(data, metadata), outer), buffer=largest, pixels=pixels)


def _still(data: bytes, outer: Sequence[Box]) -> bytes:
    """Hide an animation; the decoder takes the still image beside it."""
    films = [data.rindex(b"moov", 0, box.start) for box in outer if box.name == b"moov"]
    if not films:
        return data
    changed = bytearray(hidden(data, films))
    for box in outer:
        if box.name == b"ftyp":
            for at in (box.start, *range(box.start + 8, box.end - 3, 4)):
                if data[at : at + 4] == b"avis":
                    changed[at : at + 4] = b"avif"
    return bytes(changed)
