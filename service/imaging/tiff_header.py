"""A TIFF's first directory, written anew, so that all who read it read the same.

Pillow and libtiff read the directory each for itself, and take tags differently that are there
twice, are empty or have an odd type. Here each is read once; what the image does not need is
left out, and the rest is written as a small directory behind the file's own bytes. A BigTIFF
becomes an ordinary one by that.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from service.imaging import colour_profile, tiff_samples
from service.imaging.sanitized_file import Sanitized
from service.imaging.tiff_samples import Tags

_MOST_TAGS = 4096  # libtiff's own limit
_MOST_VALUES = 262_144  # of all tags, but for bytes and text; a strip or a tile has two
_TIMES = 2  # how often the file's bytes may count as its strips'

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}  # bytes, by the tag's type
_SIZES |= {11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BYTES, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7
_BIG = 43  # BigTIFF's version
_RAW, _OLD_JPEG, _JPEG, _DEFLATE = 1, 6, 7, 8
_PLANAR = 2  # each colour by itself
_USUAL, _REVERSED = 1, 2  # the lowest bit of a byte first
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_FILL_ORDER, _ORIENTATION, _CONFIGURATION, _PROFILE = 266, 274, 284, 34675
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # of strips and of tiles
# Whole numbers: sizes, how samples are stored and meant, where they are, orientation, fax, the
# old kind of JPEG.
_NUMBERS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320}
_NUMBERS |= {322, 323, 324, 325, 332, 338, 339, *range(512, 522), 530, 531}
_SEVERAL = {258, 273, 279, 320, 324, 325, 338, 339, *range(512, 522), 530}
_TABLES, _COEFFICIENTS, _BLACK_AND_WHITE = 347, 529, 532
_OTHERS = {_TABLES: _UNDEFINED, _COEFFICIENTS: _RATIONAL, _BLACK_AND_WHITE: _RATIONAL}
_SCAN = b"\xff\xda"
_HEAD, _INLINE, _MOST_SHORT = 8, 4, 0xFFFF
_MAGIC = {"<": b"II*\0", ">": b"MM\0*"}

_Others = Mapping[int, tuple[int, bytes]]
"""Tags that are no whole numbers: their type and their bytes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    at: int  # where its values are

    @property
    def nbytes(self) -> int:
        return _SIZES[self.kind] * self.count


def sanitize(data: bytes) -> Sanitized:
    """Write the directory anew, and say what decoding the image takes.

    Its buffer is the size of a tile, 0 where there are only strips, which are never larger than
    the image. Tiles are decoded whole, however little of them the image shows, and one in
    JPEG has scans. Raises `UnsupportedType` for a kind of TIFF that cannot be read, and
    `ValueError` or `struct.error` for a directory that no camera writes.
    """
    order = "<" if data.startswith(b"I") else ">"
    entries = _entries(data, order)
    numbers = {tag: _values(data, order, entries[tag]) for tag in _NUMBERS & entries.keys()}
    tags: Tags = {
        tag: values if tag in _SEVERAL else values[:1] for tag, values in numbers.items() if values
    }
    if any(_first(tags, tag) <= 0 for tag in (_WIDTH, _HEIGHT)) or tags.keys().isdisjoint(_OFFSETS):
        raise ValueError("no pixels")
    tags = {**tags, **tiff_samples.palette(tags)}
    samples, variant = tiff_samples.judge(data, tags, entries.keys())
    _check_strips(data, tags)
    others = {
        tag: (kind, data[entries[tag].at : entries[tag].at + entries[tag].nbytes])
        for tag, kind in _OTHERS.items()
        if tag in entries and entries[tag].kind == kind
    }
    profile = entries.get(_PROFILE)
    found = b"" if profile is None else data[profile.at : profile.at + profile.nbytes]
    buffer, passes = _cost(data, tags)
    parts = [data]
    is_odd = _first(tags, _CONFIGURATION) == _PLANAR or _first(tags, _FILL_ORDER) == _REVERSED
    if is_odd and _first(tags, _COMPRESSION, _RAW) == _RAW:
        parts, tags = _with_deflate(data, tags)
    turned = {tag: values for tag, values in tags.items() if tag != _ORIENTATION}
    return Sanitized(
        _written(parts, order, turned, others),
        orientation=_first(tags, _ORIENTATION, 1),
        buffer=buffer,
        passes=passes,
        profile=found,
        variant=variant,
        samples=samples,
    )


def _entries(data: bytes, order: str) -> Mapping[int, _Entry]:
    """Read the first directory: of each tag that is needed the first that is not empty."""
    is_big = struct.unpack_from(order + "H", data, 2) == (_BIG,)
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    if count > _MOST_TAGS:
        raise ValueError("too many tags")
    entry = struct.Struct(order + ("HHQQ" if is_big else "HHII"))
    inline = 8 if is_big else 4
    start += 8 if is_big else 2
    found: dict[int, _Entry] = {}
    for at in range(start, start + count * entry.size, entry.size):
        tag, kind, values, place = entry.unpack_from(data, at)
        if tag in found or not values or kind not in _SIZES:
            continue
        if _SIZES[kind] * values <= inline:
            place = at + entry.size - inline
        found[tag] = _Entry(kind, values, place)
    return _checked(data, found)


def _checked(data: bytes, found: Mapping[int, _Entry]) -> Mapping[int, _Entry]:
    """Leave out what is not needed; refuse what claims more than there is."""
    needed = {tag: entry for tag, entry in found.items() if tag in _NUMBERS | _OTHERS.keys()}
    numbers = {tag: entry for tag, entry in needed.items() if tag in _NUMBERS}
    if sum(entry.nbytes for entry in needed.values()) > len(data):
        raise ValueError("its tags hold more than the file")
    if sum(entry.count for entry in numbers.values()) > _MOST_VALUES:
        raise ValueError("too many values")
    profile = found.get(_PROFILE)
    if profile is not None and profile.nbytes <= colour_profile.MOST:
        needed[_PROFILE] = profile
    unread = {tag: entry for tag, entry in found.items() if tag in tiff_samples.MARKS}
    return {**unread, **needed}


def _values(data: bytes, order: str, entry: _Entry) -> tuple[int, ...]:
    """Read whole numbers; none where the tag has others."""
    if entry.kind not in _INTEGERS:
        return ()
    return struct.unpack_from(f"{order}{entry.count}{_INTEGERS[entry.kind]}", data, entry.at)


def _first(tags: Tags, tag: int, default: int = 0) -> int:
    return tags.get(tag, (default,))[0]


def _check_strips(data: bytes, tags: Tags) -> None:
    """Refuse strips that lie on one another: each would be decompressed anew."""
    if _first(tags, _COMPRESSION, _RAW) == _RAW:
        return  # then Pillow reads them, and is metered
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        known = tags.get(lengths, ())
        if sum(known) > _TIMES * len(data):
            raise ValueError("its strips are longer than the file")
        if len(tags.get(offsets, ())) > max(len(known), 1):
            raise ValueError("it does not say how long its strips are")


def _cost(data: bytes, tags: Tags) -> tuple[tuple[int, int], float]:
    """Give the tile that decoding needs in memory, and how often it goes over the pixels."""
    width, height, tile_width, tile_height = (
        _first(tags, tag) for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    scans = _scans(data, tags)
    if min(width, height, tile_width, tile_height) <= 0:
        return (0, 0), scans
    across, down = -(-width // tile_width) * tile_width, -(-height // tile_height) * tile_height
    return (tile_width, tile_height), scans * across * down / (width * height)


def _scans(data: bytes, tags: Tags) -> int:
    """Count the scans of the strip or the tile that has the most."""
    compression = _first(tags, _COMPRESSION, _RAW)
    if compression == _OLD_JPEG:  # whose scans may lie anywhere
        return max(data.count(_SCAN), 1)
    if compression != _JPEG:
        return 1
    most = 1
    for start, size in _strips(tags):
        most = max(most, data.count(_SCAN, start, start + size))
    return most


def _strips(tags: Tags) -> Sequence[tuple[int, int]]:
    """Give where each strip or tile begins, and its bytes."""
    return [
        strip
        for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True)
        for strip in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
    ]


def _with_deflate(data: bytes, tags: Tags) -> tuple[list[bytes], Tags]:
    """Have libtiff read raw pixels in an order that Pillow does not read, or takes for another.

    For that they become deflate without compression, which is left to libtiff.
    """
    strips = _strips(tags)
    if not strips or sum(size for _, size in strips) > _TIMES * len(data):
        raise ValueError("its strips are longer than the file")
    raw = (data[start : start + size] for start, size in strips)
    if _first(tags, _FILL_ORDER) == _REVERSED:
        raw = (strip.translate(_TURNED) for strip in raw)
    packed = [zlib.compress(strip, 0) for strip in raw]
    sizes = tuple(map(len, packed))
    starts = tuple(accumulate(sizes[:-1], initial=_HEAD))
    moved: dict[int, tuple[int, ...]] = {_COMPRESSION: (_DEFLATE,), _FILL_ORDER: (_USUAL,)}
    moved |= {tag: starts for tag in _OFFSETS if tag in tags}
    moved |= {tag: sizes for tag in _LENGTHS if tag in tags}
    return [bytes(_HEAD), *packed], {**tags, **moved}


def _written(parts: Sequence[bytes], order: str, tags: Tags, others: _Others) -> bytes:
    """Put a directory behind a file's parts, of which the first begins with a header."""
    at = sum(map(len, parts))
    entries, behind = [], [bytes(at % 2)]  # a directory begins at an even place
    size = 2 + 12 * (len(tags) + len(others)) + 4
    place = at + at % 2 + size
    numbers = {tag: _numbers(order, values) for tag, values in tags.items()}
    for tag, (kind, content) in sorted({**numbers, **others}.items()):
        count = len(content) // _SIZES[kind]
        entries.append(struct.pack(order + "HHI", tag, kind, count))
        if len(content) <= _INLINE:
            entries.append(content.ljust(_INLINE, b"\0"))
            continue
        entries.append(struct.pack(order + "I", place))
        behind.append(content)
        place += len(content)
    head = _MAGIC[order] + struct.pack(order + "I", at + at % 2)
    directory = [struct.pack(order + "H", len(tags) + len(others)), *entries, bytes(4)]
    first = memoryview(parts[0])[_HEAD:]
    return b"".join([head, first, *parts[1:], behind[0], *directory, *behind[1:]])


def _numbers(order: str, values: Sequence[int]) -> tuple[int, bytes]:
    """Write whole numbers as short as they can be, and say how."""
    kind = _SHORT if max(values) <= _MOST_SHORT else _LONG
    return kind, struct.pack(f"{order}{len(values)}{_INTEGERS[kind]}", *values)
