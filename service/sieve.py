"""What a decoder needs of a picture file, and how much its headers ask for.

A thread inside a C library cannot be stopped, so what would keep it busy or fill its memory is
found before, in a time that grows with the file's length alone. JPEG, PNG and GIF lose what does
not change how they look. The others stay as they are; a TIFF that contradicts itself is refused.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from service import tiff

MOST_METADATA = 65_536  # bytes of EXIF or XMP: no more fit in a JPEG's segment
_MOST_SEGMENTS = 4096  # of a JPEG before its pixels
_MOST_CHUNKS = 65_536  # of a PNG
_MOST_BLOCKS = 262_144  # of a GIF before its first frame

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
# What ends a scan; libjpeg takes lower markers for damage, and goes on looking behind them.
_IN_SCAN = re.compile(rb"\xff[^\x00-\xbf\xd0-\xd8\xff]", re.DOTALL)
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_APPLICATION = range(0xE0, 0xF0)
_EOI, _SOS, _COMMENT = 0xD9, 0xDA, 0xFE
_SEQUENTIAL = {0xC0, 0xC1}  # frames that are no progressive ones
_COLOURS = (b"JFIF", b"Adobe")  # application segments that say what the colours are
_UPRIGHT_SEGMENTS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")

_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_UPRIGHT_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

_BLOCK = re.compile(rb"[!,;]")  # an extension, a frame, the end
_CONTROL = b"\xf9"  # the extension that says what is transparent


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is to be decoded, and what its headers ask for that Pillow does not tell."""

    data: bytes
    buffer: tuple[int, int] = (0, 0)  # width x height that the decoder keeps in memory early
    passes: float = 1.0  # how often it goes over the pixels


def sift(data: bytes, kind: str) -> Sifted:
    """Take from a picture of this kind, by Pillow's name for it, what decoding needs.

    Raises `ValueError` or `struct.error` for what no decoder should see.
    """
    if kind == "JPEG":
        return _jpeg(data)
    if kind == "PNG":
        return Sifted(b"".join(_chunks(data)))
    if kind == "GIF":
        return _gif(data)
    if kind == "WEBP":
        return Sifted(data, buffer=_canvas(data))
    if kind == "TIFF":
        return Sifted(data, *tiff.ask(data))
    return Sifted(data)


def _jpeg(data: bytes) -> Sifted:
    """Leave out application segments and comments, but for those that change the picture."""
    view, kept, wanted = memoryview(data), [memoryview(data)[:2]], set(_UPRIGHT_SEGMENTS)
    at, colours = 2, b""
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] in {_EOI, _SOS}:
            kept.append(view[at:])
            # A first scan of all colours is the last: the decoder expects the end behind it.
            is_one = found and colours and data[found.end() + 2 : found.end() + 3] == colours
            is_all = sum(map(len, kept)) == len(data)  # then spare the copy
            passes = 1 if is_one else max(_scans(data, at), 1)
            return Sifted(data if is_all else b"".join(kept), passes=passes)
        start, marker = found.start(), data[found.start() + 1]
        if marker in _SEQUENTIAL:
            colours = data[start + 9 : start + 10]
        at = start + 2 + _length(data, start + 2, marker)
        if _is_needed(marker, data[start + 4 : start + 40], wanted):
            kept.append(view[start:at])
    raise ValueError("too many segments")


def _is_needed(marker: int, content: bytes, wanted: set[bytes]) -> bool:
    """Say whether a segment changes the picture; each of those `wanted` does once."""
    if marker not in _APPLICATION:
        return marker != _COMMENT
    for name in wanted:
        if content.startswith(name):
            wanted.remove(name)
            return True
    return content.startswith(_COLOURS)


def _scans(data: bytes, at: int) -> int:
    """Count a JPEG's scans up to its end: what comes after may look like scans and is none."""
    count = 0
    while (found := _IN_SCAN.search(data, at)) and (marker := data[found.start() + 1]) != _EOI:
        count += marker == _SOS
        at = found.end() + _length(data, found.end(), marker)
    return count


def _length(data: bytes, at: int, marker: int) -> int:
    """Read how long a segment is, its length included; at the file's end it is empty."""
    if marker in _BARE or at + 2 > len(data):
        return 0
    return max(int.from_bytes(data[at : at + 2], "big"), 2)


def _chunks(data: bytes) -> Iterator[memoryview]:
    """Give a PNG's chunks that say how it looks, and one of each that says which way is up."""
    view, wanted = memoryview(data), {b"eXIf", *_UPRIGHT_TEXTS}
    yield view[:8]
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            yield view[at:]
            return
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in _TEXT_CHUNKS:
            text = data[at + 8 : at + 40]
            name = next((known for known in _UPRIGHT_TEXTS if text.startswith(known)), name)
        if name in _PIXEL_CHUNKS:
            yield view[at:end]
        elif name in wanted and length <= MOST_METADATA:
            wanted.remove(name)
            yield view[at:end]
        if name == b"IEND":
            return
        at = end
    raise ValueError("too many chunks")


def _gif(data: bytes) -> Sifted:
    """Leave out extensions before the first frame, but for those that change the picture."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (6 << (flags & 7) if flags & 0x80 else 0)  # behind the palette
    kept, blocks = [data[:at]], 0
    while (found := _BLOCK.search(data, at)) and found[0] == b"!":
        at = found.end() + 1
        while at < len(data) and data[at]:
            at += data[at] + 1
            blocks += 1
        at, blocks = at + 1, blocks + 1
        if data[found.end() : found.end() + 1] == _CONTROL:
            kept.append(data[found.start() : at])
        if blocks > _MOST_BLOCKS:
            raise ValueError("too many blocks")
    if found is None or found[0] == b";":
        raise ValueError("no frame")
    left, top, across, down = struct.unpack_from("<HHHH", data, found.end())
    kept.append(data[found.start() :])
    return Sifted(b"".join(kept), buffer=(max(width, left + across), max(height, top + down)))


def _canvas(data: bytes) -> tuple[int, int]:
    """Read a WebP's size: its decoder makes the canvas before Pillow knows it."""
    if data[12:16] == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    across, down = struct.unpack_from("<HH", data, 26)
    return across & 0x3FFF, down & 0x3FFF
