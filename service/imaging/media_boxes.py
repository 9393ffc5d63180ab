"""Read the boxes and items of an ISO base media file (AVIF, HEIC)."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_MAX_BOXES = 4096
_MAX_ITEMS = 4096
_MAX_ITEM_RATIO = 2  # the items' total length, in lengths of the file
_IN_FILE, _IN_BOX = 0, 1  # an item's construction method: offsets in the file, or in the `idat` box


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a file: its name, and the start and end offset of its content."""

    name: bytes
    start: int
    end: int


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        box_end = end if size == 0 else start + size
        if (size and size < head) or box_end > end:
            raise ValueError("a box is longer than what it is in")
        yield Box(name, start + head, box_end)
        start = box_end
    raise ValueError("too many boxes")


def items(data: bytes, meta: Box) -> Iterator[tuple[int, bytes]]:
    """Yield the offset of each item's type, four letters, and the item's bytes."""
    inner = children(data, meta)
    if b"iloc" not in inner or b"iinf" not in inner:
        raise ValueError("no items")
    types = _type_offsets(data, inner[b"iinf"])
    item_data = inner.get(b"idat", Box(b"idat", 0, 0))
    total = 0
    for item, is_inside, extents in _locations(data, inner[b"iloc"]):
        start, end = (item_data.start, item_data.end) if is_inside else (0, len(data))
        total += sum(length or end - start for _, length in extents)
        if total > _MAX_ITEM_RATIO * len(data):
            raise ValueError("its items are longer than the file")
        parts = [
            data[start + offset : min(start + offset + length, end) if length else end]
            for offset, length in extents
        ]
        if item in types:
            yield types[item], b"".join(parts)


def children(data: bytes, meta: Box) -> dict[bytes, Box]:
    """Return the boxes in a `meta` box by name."""
    return {box.name: box for box in boxes(data, meta.start + 4, meta.end)}


def rename_to_free(data: bytes, offsets: Sequence[int]) -> bytes:
    """Overwrite the box names and item types at these offsets with `free`, which decoders ignore.

    No box or item moves, as files refer to them by offset.
    """
    changed = bytearray(data)
    for offset in offsets:
        changed[offset : offset + 4] = b"free"
    return bytes(changed) if offsets else data


def _type_offsets(data: bytes, box: Box) -> Mapping[int, int]:
    """Return the offset of each item's type, by item id."""
    start = box.start + (6 if data[box.start] == 0 else 8)  # after the version and the count
    types = {}
    for entry in boxes(data, start, box.end):
        size = {2: 2, 3: 4}.get(data[entry.start])  # of the item id
        if entry.name == b"infe" and size:
            id_end = entry.start + 4 + size
            types[int.from_bytes(data[entry.start + 4 : id_end], "big")] = id_end + 2
    return types


class _Reader:
    """Read consecutive big-endian integers of given sizes in bytes."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def read(self, size: int) -> int:
        if self._offset + size > len(self._data):
            raise ValueError("cut short")
        self._offset += size
        return int.from_bytes(self._data[self._offset - size : self._offset], "big")


def _locations(data: bytes, box: Box) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Yield each item's id, whether it is in the `idat` box, and its parts' offsets and lengths."""
    reader = _Reader(data[: box.end], box.start)
    version = reader.read(4) >> 24
    sizes = reader.read(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    id_size = 4 if version == 2 else 2  # noqa: PLR2004 - the version of many items
    count = reader.read(id_size)
    if count > _MAX_ITEMS:
        raise ValueError("too many items")
    for _ in range(count):
        item = reader.read(id_size)
        method = reader.read(2) & 15 if version else _IN_FILE
        reader.read(2)  # data reference index
        origin = reader.read(base)
        extents = []
        for _part in range(reader.read(2)):
            reader.read(index if version else 0)
            extents.append((origin + reader.read(offset), reader.read(length)))
            if len(extents) > _MAX_ITEMS:
                raise ValueError("too many parts")
        yield item, method == _IN_BOX, extents
