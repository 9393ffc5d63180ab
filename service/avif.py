"""An AVIF's pictures: how large they are and how many, before any is decoded.

libavif and dav1d decode a picture in one go, and a stream may hold larger frames than the file
says, or many that are never shown.
"""

from collections.abc import Sequence

from service import av1
from service.media_boxes import Box, boxes, items
from service.sanitized import Sanitized, refusal

_AV1, _FREE = b"av01", b"free"
_METADATA = {b"Exif", b"mime"}


def sanitize(data: bytes) -> Sanitized:
    """Say what decoding takes; of an animation leave only its still picture.

    Its buffer is the size of the largest frame. Raises `UnsupportedType`, or `ValueError` for
    what is broken.
    """
    outer = list(boxes(data, 0, len(data)))
    metas = [box for box in outer if box.name == b"meta"]
    films = [box for box in outer if box.name == b"moov"]
    if not metas and films:
        raise refusal("AVIF", "a video without a still picture")
    if len(metas) != 1:
        raise ValueError("no items")
    sizes: list[tuple[int, int]] = []
    hidden = []
    for at, content in items(data, metas[0]):
        if data[at : at + 4] == _AV1:
            sizes += av1.frames(content)
        elif data[at : at + 4] in _METADATA:
            hidden.append(at)
    if not sizes:
        raise ValueError("no frames")
    largest = max(sizes, key=lambda size: size[0] * size[1])
    pixels = sum(width * height for width, height in sizes)
    return Sanitized(_plain(data, outer, hidden), buffer=largest, pixels=pixels)


def _plain(data: bytes, outer: Sequence[Box], hidden: Sequence[int]) -> bytes:
    """Hide the metadata and an animation; the decoder takes the still picture beside it.

    No box changes its place or its length, as items are found by their places in the file. Which
    way is up is no matter of metadata here, but of the picture's own properties.
    """
    changed = bytearray(data)
    for at in hidden:
        changed[at : at + 4] = _FREE
    is_animated = any(box.name == b"moov" for box in outer)
    for box in outer if is_animated else ():
        if box.name == b"moov":
            at = data.rindex(b"moov", 0, box.start)
            changed[at : at + 4] = _FREE
        if box.name == b"ftyp":
            for at in (box.start, *range(box.start + 8, box.end - 3, 4)):
                if data[at : at + 4] == b"avis":
                    changed[at : at + 4] = b"avif"
    return bytes(changed) if hidden or is_animated else data
