"""What a decoder needs of an image file, and how much its headers ask for.

A thread inside a C library cannot be stopped, so what would keep it busy or fill its memory is
found before, in a time that grows with the file's length alone. Files lose what does not change
how they look, but for BMP and WebP, which stay as they are.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

from service.imaging import avif, heif, jpeg, png, tiff_header
from service.imaging.sanitized_file import Sanitized

_MOST_BLOCKS = 262_144  # of a GIF before its first frame
_BLOCK = re.compile(rb"[!,;]")  # an extension, a frame, the end
_CONTROL = b"\xf9"  # the extension that says what is transparent
_ANIMATED, _ALPHA = 0x02, 0x10  # flags of a WebP
_BMP_COMPRESSIONS = {1: "RLE8", 2: "RLE4", 3: "bit masks", 4: "JPEG", 5: "PNG"}
_BIT_MASKS = 3


def sift(data: bytes, kind: str) -> Sanitized:
    """Take from an image of this kind, by Pillow's name for it, what decoding needs.

    Raises `UnsupportedType` for a variant that cannot be read, and `ValueError` or
    `struct.error` for what no decoder should see.
    """
    return replace(_OF[kind](data), kind=kind)


def _gif(data: bytes) -> Sanitized:
    """Leave out extensions before the first frame, but for those that change the image."""
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
    return Sanitized(
        b"".join(kept),
        buffer=(max(width, left + across), max(height, top + down)),
        frame=(left, top, left + across, top + down),
    )


def _webp(data: bytes) -> Sanitized:
    """Have what the frame of an animation leaves free come out transparent, not black."""
    buffer = _canvas(data)
    if data[12:16] == b"VP8X" and data[20] & _ANIMATED and not data[20] & _ALPHA:
        data = data[:20] + bytes([data[20] | _ALPHA]) + data[21:]
    return Sanitized(data, buffer=buffer)


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


def _bmp(data: bytes) -> Sanitized:
    """Say of what kind a BMP is whose header is there."""
    (size,) = struct.unpack_from("<I", data, 14)
    if len(data) < 14 + size:
        return Sanitized(data)
    if size < 40:  # noqa: PLR2004 - the header of OS/2
        return Sanitized(data, variant=f"a header of {size} bytes")
    bits, compression = struct.unpack_from("<HI", data, 28)
    said = [f"{bits} bits a pixel"]
    if compression:
        said.append(_BMP_COMPRESSIONS.get(compression, f"compression {compression}"))
    if compression == _BIT_MASKS and len(data) >= 66:  # noqa: PLR2004 - where the masks end
        said.append("/".join(f"{mask:X}" for mask in struct.unpack_from("<III", data, 54)))
    return Sanitized(data, variant=", ".join(said))


_OF: Mapping[str, Callable[[bytes], Sanitized]] = {
    "JPEG": jpeg.sanitize,
    "PNG": png.sanitize,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "TIFF": tiff_header.sanitize,
    "AVIF": avif.sanitize,
    "HEIF": heif.sanitize,
}
