"""Read the sizes and the number of a HEIC's images, without decoding, and remove its metadata.

libheif and libde265 decode an image in one call, and a stream may hold larger images than the file
declares, or many. They are installed by the extra `heic` and used where a setting enables them.
"""

import struct
from importlib.util import find_spec

from service.errors import WrongOption
from service.imaging import hevc
from service.imaging.media_boxes import Box, boxes, children, items, rename_to_free
from service.imaging.sanitized_file import Sanitized, unsupported

_HEVC, _GRID = b"hvc1", b"grid"
_DERIVED = {b"iovl", b"iden", b"tili"}  # images composed of others, each used any number of times
_METADATA = {b"Exif", b"mime"}


def require() -> None:
    """Raise `WrongOption` if the extra is not installed."""
    if find_spec("pillow_heif") is None:
        raise WrongOption(
            "HEIC needs an extra: pip install 'googlenet-service[heic]', or use --heic no"
        )


def sanitize(data: bytes) -> Sanitized:
    """Remove metadata, and compute the cost of decoding.

    `buffer` is the size of the largest image that a stream in the file may hold. Raises
    `UnsupportedType`, or `ValueError` for a broken file.
    """
    metas = [box for box in boxes(data, 0, len(data)) if box.name == b"meta"]
    if len(metas) != 1:
        raise ValueError("no items")
    sizes: list[tuple[int, int]] = []
    count, metadata = 0, []  # metadata: offsets
    for offset, content in items(data, metas[0]):
        kind = data[offset : offset + 4]
        if kind in _DERIVED:
            raise unsupported("HEIC", f"{kind.decode()} items", "convert it to JPEG")
        if kind == _HEVC:
            item_sizes, item_count = hevc.images(content)
            sizes, count = sizes + item_sizes, count + item_count
        elif kind in _METADATA:
            metadata.append(offset)
    inner = children(data, metas[0])
    sizes += _configured_sizes(data, inner)
    if not sizes:
        raise ValueError("no images")
    largest = max(sizes, key=lambda size: size[0] * size[1])
    pixels = largest[0] * largest[1] * max(count, _tiles(data, inner))
    clean = rename_to_free(data, metadata)
    return Sanitized(clean, buffer=largest, pixels=pixels, can_downscale=False)


def _configured_sizes(data: bytes, inner: dict[bytes, Box]) -> list[tuple[int, int]]:
    """Read the sizes in the item properties."""
    properties = inner.get(b"iprp", Box(b"iprp", 0, 0))
    return [
        size
        for container in boxes(data, properties.start, properties.end)
        if container.name == b"ipco"
        for box in boxes(data, container.start, container.end)
        if box.name == b"hvcC"
        for size in hevc.configured_sizes(data[box.start : box.end])
    ]


def _tiles(data: bytes, inner: dict[bytes, Box]) -> int:
    """Count the references to tiles; one tile may be referenced many times."""
    references = inner.get(b"iref", Box(b"iref", 0, 0))
    if references.end == 0:
        return 0
    id_size = 4 if data[references.start] else 2
    return sum(
        struct.unpack_from(">H", data, box.start + id_size)[0]
        for box in boxes(data, references.start + 4, references.end)
        if box.name == b"dimg"
    )
