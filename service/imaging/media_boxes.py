"""The boxes of an ISO base media file (AVIF, HEIC): which items it has, and their bytes."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_MOST_BOXES = 4096
_MOST_ITEMS = 4096
_TIMES = 2  # how often the file's bytes may count as its items'
_IN_FILE, _IN_BOX = 0, 1  # where an item's bytes are: in the file, or in the box `idat`


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a file: its name, and where its content is."""

    name: bytes
    start: int
    end: int


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Give the boxes between two places."""
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        behind = end if size == 0 else start + size
        if (size and size < head) or behind > end:
            raise ValueError("a box is longer than what it is in")
        yield Box(name, start + head, behind)
        start = behind
    raise ValueError("too many boxes")


def items(data: bytes, meta: Box) -> Iterator[tuple[int, bytes]]:
    """Give of each item where its type stands in the file, four letters, and its bytes."""
    inner = children(data, meta)
    if b"iloc" not in inner or b"iinf" not in inner:
        raise ValueError("no items")
    types = _types(data, inner[b"iinf"])
    held = inner.get(b"idat", Box(b"idat", 0, 0))
    total = 0
    for number, is_inside, extents in _places(data, inner[b"iloc"]):
        start, end = (held.start, held.end) if is_inside else (0, len(data))
        total += sum(length or end - start for _, length in extents)
        if total > _TIMES * len(data):
            raise ValueError("its items are longer than the file")
        parts = [
            data[start + at : min(start + at + length, end) if length else end]
            for at, length in extents
        ]
        if number in types:
            yield types[number], b"".join(parts)


def children(data: bytes, meta: Box) -> dict[bytes, Box]:
    """Give the boxes in a box `meta`, by their names."""
    return {box.name: box for box in boxes(data, meta.start + 4, meta.end)}


def hidden(data: bytes, places: Sequence[int]) -> bytes:
    """Write another name over those at these places, which no decoder knows.

    No box or item changes its place or its length, as they are found by their places in the file.
    """
    changed = bytearray(data)
    for at in places:
        changed[at : at + 4] = b"free"
    return bytes(changed) if places else data


def _types(data: bytes, box: Box) -> Mapping[int, int]:
    """Find where the type of each item stands."""
    start = box.start + (6 if data[box.start] == 0 else 8)  # behind the version and the count
    types = {}
    for entry in boxes(data, start, box.end):
        size = {2: 2, 3: 4}.get(data[entry.start])  # of the item's number
        if entry.name == b"infe" and size:
            at = entry.start + 4
            types[int.from_bytes(data[at : at + size], "big")] = at + size + 2
    return types


class _Reader:
    """Whole numbers of the sizes that a file says, one behind the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def read(self, size: int) -> int:
        if self._at + size > len(self._data):
            raise ValueError("cut short")
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "big")


def _places(data: bytes, box: Box) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Give each item's number, whether it is in the box `idat`, and where its parts are."""
    reader = _Reader(data[: box.end], box.start)
    version = reader.read(4) >> 24
    sizes = reader.read(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2  # noqa: PLR2004 - the version of many items
    count = reader.read(wide)
    if count > _MOST_ITEMS:
        raise ValueError("too many items")
    for _ in range(count):
        number = reader.read(wide)
        method = reader.read(2) & 15 if version else _IN_FILE
        reader.read(2)  # in which file
        origin = reader.read(base)
        extents = []
        for _part in range(reader.read(2)):
            reader.read(index if version else 0)
            extents.append((origin + reader.read(offset), reader.read(length)))
            if len(extents) > _MOST_ITEMS:
                raise ValueError("too many parts")
        yield number, method == _IN_BOX, extents
