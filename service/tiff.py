"""A TIFF's directory: where its pixels are, and whether it asks for more than it can.

Pillow and libtiff read the directory again, each for itself, and libtiff keeps all that the tags
point to. So what they could read differently (two tags of one number) is refused, too.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_TAGS = 4096  # libtiff's own limit
_MOST_VALUES = 262_144  # of all tags, but for bytes and text; a strip or a tile has two
_TIMES = 2  # how often the file's bytes may count as its strips'

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}  # bytes, by the tag's type
_SIZES |= {11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_BIG = 43  # BigTIFF's version
_RAW, _OLD_JPEG, _JPEG = 1, 6, 7
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # of strips and of tiles
_SCAN = b"\xff\xda"


@dataclass(frozen=True, slots=True)
class _Tag:
    size: int  # bytes of a value; 0 of an unknown type
    letter: str  # as `struct` has it; empty if they are no whole numbers
    count: int
    at: int  # where its values are

    @property
    def nbytes(self) -> int:
        return self.size * self.count


def ask(data: bytes) -> tuple[tuple[int, int], float]:
    """Give the tile that decoding needs in memory, and how often it goes over the pixels.

    The tile's width and height are 0 where there are only strips, which are never larger than
    the picture. Tiles are decoded whole, however little of them the picture shows, and one in
    JPEG has scans. Raises `ValueError` or `struct.error` for a directory that no camera writes.
    """
    order = "<" if data.startswith(b"I") else ">"
    tags = _tags(data, order)
    _check_strips(data, order, tags)
    width, height, tile_width, tile_height = (
        _first(data, order, tags, tag, 0) for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    scans = _scans(data, order, tags)
    if not (tile_width and tile_height and width and height):
        return (0, 0), scans
    across, down = -(-width // tile_width) * tile_width, -(-height // tile_height) * tile_height
    return (tile_width, tile_height), scans * across * down / (width * height)


def _tags(data: bytes, order: str) -> Mapping[int, _Tag]:
    """Read the first directory."""
    is_big = struct.unpack_from(order + "H", data, 2) == (_BIG,)
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    if count > _MOST_TAGS:
        raise ValueError("too many tags")
    entry = struct.Struct(order + ("HHQQ" if is_big else "HHII"))
    inline = 8 if is_big else 4
    start += 8 if is_big else 2
    tags: dict[int, _Tag] = {}
    for at in range(start, start + count * entry.size, entry.size):
        tag, kind, values, place = entry.unpack_from(data, at)
        size = _SIZES.get(kind, 0)
        if size * values <= inline:
            place = at + entry.size - inline
        if tag in tags:
            raise ValueError("two tags of one number")
        tags[tag] = _Tag(size, _INTEGERS.get(kind, ""), values, place)
    if sum(tag.nbytes for tag in tags.values() if tag.nbytes > inline) > len(data):
        raise ValueError("its tags hold more than the file")
    if sum(tag.count for tag in tags.values() if tag.size > 1) > _MOST_VALUES:
        raise ValueError("too many values")
    return tags


def _values(data: bytes, order: str, tag: _Tag | None) -> tuple[int, ...]:
    """Read whole numbers; none where the tag has others, or is not there."""
    if tag is None or not tag.letter:
        return ()
    return struct.unpack_from(f"{order}{tag.count}{tag.letter}", data, tag.at)


def _first(data: bytes, order: str, tags: Mapping[int, _Tag], tag: int, default: int) -> int:
    return next(iter(_values(data, order, tags.get(tag))), default)


def _check_strips(data: bytes, order: str, tags: Mapping[int, _Tag]) -> None:
    """Refuse strips that lie on one another: each would be decompressed anew."""
    if _first(data, order, tags, _COMPRESSION, _RAW) == _RAW:
        return  # then Pillow reads them, and is metered
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        known = _values(data, order, tags.get(lengths))
        if sum(known) > _TIMES * len(data):
            raise ValueError("its strips are longer than the file")
        if offsets in tags and tags[offsets].count > max(len(known), 1):
            raise ValueError("it does not say how long its strips are")


def _scans(data: bytes, order: str, tags: Mapping[int, _Tag]) -> int:
    """Count the scans of the strip or the tile that has the most."""
    compression = _first(data, order, tags, _COMPRESSION, _RAW)
    if compression == _OLD_JPEG:  # whose scans may lie anywhere
        return max(data.count(_SCAN), 1)
    if compression != _JPEG:
        return 1
    most = 1
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        starts = _values(data, order, tags.get(offsets))
        sizes = _values(data, order, tags.get(lengths))
        for start, size in zip(starts, sizes, strict=False):
            most = max(most, data.count(_SCAN, start, start + size))
    return most
