"""Rewrite a TIFF's first directory, so that Pillow and libtiff read the same tags.

Both parse the directory, and differ on tags that are duplicate, empty or of an unusual type. Here
each tag is read once, those that the image does not need are removed, and the others are written
as a small classic directory after the file's own bytes, also for a BigTIFF.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from service.imaging import colour_profile, tiff_samples
from service.imaging.sanitized_file import Sanitized
from service.imaging.tiff_samples import Tags

_MAX_TAGS = 4096  # libtiff's own limit
_MAX_VALUES = 262_144  # numbers in all tags; a strip or a tile has two
_MAX_STRIP_RATIO = 2  # the strips' total length, in lengths of the file

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}  # bytes, by the tag's type
_SIZES |= {11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BYTES, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7
_BIG = 43  # BigTIFF's version
_RAW, _OLD_JPEG, _JPEG, _DEFLATE = 1, 6, 7, 8
_PLANAR = 2  # one plane for each colour
_MSB_FIRST, _LSB_FIRST = 1, 2  # fill orders
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_FILL_ORDER, _ORIENTATION, _CONFIGURATION, _PROFILE = 266, 274, 284, 34675
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # of strips and of tiles
# Tags with integers: sizes, sample formats, offsets, orientation, fax and old-style JPEG.
_INTEGER_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, 339, *range(512, 522), 530, 531),
}
_MULTI_VALUE_TAGS = {258, 273, 279, 320, 324, 325, 338, 339, *range(512, 522), 530}
_TABLES, _COEFFICIENTS, _BLACK_AND_WHITE = 347, 529, 532
_OTHER_TAGS = {_TABLES: _UNDEFINED, _COEFFICIENTS: _RATIONAL, _BLACK_AND_WHITE: _RATIONAL}
_SCAN = b"\xff\xda"
_HEAD, _INLINE, _MAX_SHORT = 8, 4, 0xFFFF
_MAGIC = {"<": b"II*\0", ">": b"MM\0*"}

_Others = Mapping[int, tuple[int, bytes]]
"""The type and bytes of each tag without integers."""


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    offset: int  # of its values

    @property
    def nbytes(self) -> int:
        return _SIZES[self.kind] * self.count


def sanitize(data: bytes) -> Sanitized:
    """Rewrite the directory, and compute the cost of decoding.

    `buffer` is the size of a tile, which is decoded whole however little of it the image shows; it
    is 0 for strips, which are never larger than the image. Raises `UnsupportedType` for a variant
    that cannot be decoded, and `ValueError` or `struct.error` for a malformed directory.
    """
    order = "<" if data.startswith(b"I") else ">"
    entries = _entries(data, order)
    tags = _integer_tags(data, order, entries)
    if any(_first(tags, tag) <= 0 for tag in (_WIDTH, _HEIGHT)) or tags.keys().isdisjoint(_OFFSETS):
        raise ValueError("no pixels")
    tags = {**tags, **tiff_samples.palette(tags)}
    samples, variant = tiff_samples.check(data, tags, entries.keys())
    _check_strips(data, tags)
    others = {
        tag: (kind, _content(data, entries[tag]))
        for tag, kind in _OTHER_TAGS.items()
        if tag in entries and entries[tag].kind == kind
    }
    buffer, passes = _cost(data, tags)
    parts = [data]
    is_unusual = _first(tags, _CONFIGURATION) == _PLANAR or _first(tags, _FILL_ORDER) == _LSB_FIRST
    if is_unusual and _first(tags, _COMPRESSION, _RAW) == _RAW:
        parts, tags = _with_deflate(data, tags)
    unrotated = {tag: values for tag, values in tags.items() if tag != _ORIENTATION}
    return Sanitized(
        _written(parts, order, unrotated, others),
        orientation=_first(tags, _ORIENTATION, 1),
        buffer=buffer,
        passes=passes,
        profile=_content(data, entries[_PROFILE]) if _PROFILE in entries else b"",
        variant=variant,
        samples=samples,
    )


def _entries(data: bytes, order: str) -> Mapping[int, _Entry]:
    """Read the first directory: the first entry of each tag that is not empty."""
    is_big = struct.unpack_from(order + "H", data, 2) == (_BIG,)
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    if count > _MAX_TAGS:
        raise ValueError("too many tags")
    entry = struct.Struct(order + ("HHQQ" if is_big else "HHII"))
    inline = 8 if is_big else 4
    start += 8 if is_big else 2
    entries: dict[int, _Entry] = {}
    for position in range(start, start + count * entry.size, entry.size):
        tag, kind, values, offset = entry.unpack_from(data, position)
        if tag in entries or not values or kind not in _SIZES:
            continue
        if _SIZES[kind] * values <= inline:
            offset = position + entry.size - inline
        entries[tag] = _Entry(kind, values, offset)
    return _needed(data, entries)


def _needed(data: bytes, entries: Mapping[int, _Entry]) -> Mapping[int, _Entry]:
    """Return the entries that are used; refuse more values than the file can hold."""
    used = _INTEGER_TAGS | _OTHER_TAGS.keys()
    needed = {tag: entry for tag, entry in entries.items() if tag in used}
    numbers = {tag: entry for tag, entry in needed.items() if tag in _INTEGER_TAGS}
    if sum(entry.nbytes for entry in needed.values()) > len(data):
        raise ValueError("its tags hold more than the file")
    if sum(entry.count for entry in numbers.values()) > _MAX_VALUES:
        raise ValueError("too many values")
    profile = entries.get(_PROFILE)
    if profile is not None and profile.nbytes <= colour_profile.MAX_BYTES:
        needed[_PROFILE] = profile
    marks = {tag: entry for tag, entry in entries.items() if tag in tiff_samples.MARKS}
    return {**marks, **needed}


def _integer_tags(data: bytes, order: str, entries: Mapping[int, _Entry]) -> Tags:
    """Read the tags with integers, one value of each that may have no more."""
    tags = {tag: _values(data, order, entries[tag]) for tag in _INTEGER_TAGS & entries.keys()}
    return {
        tag: values if tag in _MULTI_VALUE_TAGS else values[:1]
        for tag, values in tags.items()
        if values
    }


def _content(data: bytes, entry: _Entry) -> bytes:
    return data[entry.offset : entry.offset + entry.nbytes]


def _values(data: bytes, order: str, entry: _Entry) -> tuple[int, ...]:
    """Read an entry's integers; empty for another type."""
    if entry.kind not in _INTEGERS:
        return ()
    return struct.unpack_from(f"{order}{entry.count}{_INTEGERS[entry.kind]}", data, entry.offset)


def _first(tags: Tags, tag: int, default: int = 0) -> int:
    return tags.get(tag, (default,))[0]


def _check_strips(data: bytes, tags: Tags) -> None:
    """Refuse overlapping strips: each would be decompressed again."""
    if _first(tags, _COMPRESSION, _RAW) == _RAW:
        return  # Pillow reads them, through the metered file
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        sizes = tags.get(lengths, ())
        if sum(sizes) > _MAX_STRIP_RATIO * len(data):
            raise ValueError("its strips are longer than the file")
        if len(tags.get(offsets, ())) > max(len(sizes), 1):
            raise ValueError("it does not say how long its strips are")


def _cost(data: bytes, tags: Tags) -> tuple[tuple[int, int], float]:
    """Return the size of the tile in memory, and the number of passes over the image's pixels."""
    width, height, tile_width, tile_height = (
        _first(tags, tag) for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    scans = _scans(data, tags)
    if min(width, height, tile_width, tile_height) <= 0:
        return (0, 0), scans
    across, down = -(-width // tile_width) * tile_width, -(-height // tile_height) * tile_height
    return (tile_width, tile_height), scans * across * down / (width * height)


def _scans(data: bytes, tags: Tags) -> int:
    """Return the largest number of JPEG scans in a strip or tile."""
    compression = _first(tags, _COMPRESSION, _RAW)
    if compression == _OLD_JPEG:  # its scans may be anywhere
        return max(data.count(_SCAN), 1)
    if compression != _JPEG:
        return 1
    counts = (data.count(_SCAN, start, start + size) for start, size in _strips(tags))
    return max([1, *counts])


def _strips(tags: Tags) -> Sequence[tuple[int, int]]:
    """Return the offset and length of each strip or tile."""
    return [
        strip
        for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True)
        for strip in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
    ]


def _with_deflate(data: bytes, tags: Tags) -> tuple[list[bytes], Tags]:
    """Store raw pixels as uncompressed deflate, which Pillow leaves to libtiff.

    Pillow itself does not read raw planes or reversed bits, or reads them wrongly.
    """
    strips = _strips(tags)
    if not strips or sum(size for _, size in strips) > _MAX_STRIP_RATIO * len(data):
        raise ValueError("its strips are longer than the file")
    raw = (data[start : start + size] for start, size in strips)
    if _first(tags, _FILL_ORDER) == _LSB_FIRST:
        raw = (strip.translate(_REVERSED_BITS) for strip in raw)
    stored = [zlib.compress(strip, 0) for strip in raw]
    sizes = tuple(map(len, stored))
    starts = tuple(accumulate(sizes[:-1], initial=_HEAD))
    changed: dict[int, tuple[int, ...]] = {_COMPRESSION: (_DEFLATE,), _FILL_ORDER: (_MSB_FIRST,)}
    changed |= {tag: starts for tag in _OFFSETS if tag in tags}
    changed |= {tag: sizes for tag in _LENGTHS if tag in tags}
    return [bytes(_HEAD), *stored], {**tags, **changed}


def _written(parts: Sequence[bytes], order: str, tags: Tags, others: _Others) -> bytes:
    """Append a directory to a file's parts, and point the header of the first at it."""
    length = sum(map(len, parts))
    padding = bytes(length % 2)  # a directory begins at an even offset
    start = length + len(padding)
    entries, values = [], []
    offset = start + 2 + 12 * (len(tags) + len(others)) + 4
    integers = {tag: _packed(order, numbers) for tag, numbers in tags.items()}
    for tag, (kind, content) in sorted({**integers, **others}.items()):
        count = len(content) // _SIZES[kind]
        entries.append(struct.pack(order + "HHI", tag, kind, count))
        if len(content) <= _INLINE:
            entries.append(content.ljust(_INLINE, b"\0"))
            continue
        entries.append(struct.pack(order + "I", offset))
        values.append(content)
        offset += len(content)
    head = _MAGIC[order] + struct.pack(order + "I", start)
    directory = [struct.pack(order + "H", len(tags) + len(others)), *entries, bytes(4)]
    first = memoryview(parts[0])[_HEAD:]
    return b"".join([head, first, *parts[1:], padding, *directory, *values])


def _packed(order: str, values: Sequence[int]) -> tuple[int, bytes]:
    """Return the smallest type for integers, and their bytes."""
    kind = _SHORT if max(values) <= _MAX_SHORT else _LONG
    return kind, struct.pack(f"{order}{len(values)}{_INTEGERS[kind]}", *values)
