"""A HEIC's images: how large they are and how many, before any is decoded.

libheif and libde265 decode an image in one go, and a stream may hold larger ones than the file
says, or many. They come with an extra, `heic`, and are used where a setting says so.
"""

import struct
from importlib.util import find_spec

from service.errors import WrongOption
from service.imaging import hevc
from service.imaging.media_boxes import Box, boxes, children, hidden, items
from service.imaging.sanitized_file import Sanitized, refusal

_HEVC, _GRID = b"hvc1", b"grid"
_DERIVED = {b"iovl", b"iden", b"tili"}  # images made of others, any number of times
_METADATA = {b"Exif", b"mime"}


def require() -> None:
    """Raise `WrongOption` where the extra is not installed."""
    if find_spec("pillow_heif") is None:
        raise WrongOption(
            "HEIC needs an extra: pip install 'googlenet-service[heic]', or give --heic no"
        )


def sanitize(data: bytes) -> Sanitized:
    """Say what decoding takes; leave out the metadata.

    Its buffer is the size of the largest image that a stream in it may hold. Raises
    `UnsupportedType`, or `ValueError` for what is broken.
    """
    metas = [box for box in boxes(data, 0, len(data)) if box.name == b"meta"]
    if len(metas) != 1:
        raise ValueError("no items")
    sizes: list[tuple[int, int]] = []
    count, metadata = 0, []
    for at, content in items(data, metas[0]):
        kind = data[at : at + 4]
        if kind in _DERIVED:
            raise refusal("HEIC", f"{kind.decode()} items", "convert it to JPEG")
        if kind == _HEVC:
            said, held = hevc.images(content)
            sizes, count = sizes + said, count + held
        elif kind in _METADATA:
            metadata.append(at)
    inner = children(data, metas[0])
    sizes += _configured(data, inner)
    if not sizes:
        raise ValueError("no images")
    largest = max(sizes, key=lambda size: size[0] * size[1])
    pixels = largest[0] * largest[1] * max(count, _tiles(data, inner))
    return Sanitized(hidden(data, metadata), buffer=largest, pixels=pixels, is_scaled=False)


def _configured(data: bytes, inner: dict[bytes, Box]) -> list[tuple[int, int]]:
    """Read the sizes in the properties of items."""
    properties = inner.get(b"iprp", Box(b"iprp", 0, 0))
    return [
        size
        for held in boxes(data, properties.start, properties.end)
        if held.name == b"ipco"
        for box in boxes(data, held.start, held.end)
        if box.name == b"hvcC"
        for size in hevc.configured(data[box.start : box.end])
    ]


def _tiles(data: bytes, inner: dict[bytes, Box]) -> int:
    """Count the images that others are made of; one may be so many times."""
    references = inner.get(b"iref", Box(b"iref", 0, 0))
    if references.end == 0:
        return 0
    wide = 4 if data[references.start] else 2
    return sum(
        struct.unpack_from(">H", data, box.start + wide)[0]
        for box in boxes(data, references.start + 4, references.end)
        if box.name == b"dimg"
    )
