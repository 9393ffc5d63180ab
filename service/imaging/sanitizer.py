"""Sanitize an image file before decoding, and read the cost of decoding from its headers.

A thread inside a C library cannot be stopped, so costly files are detected first, in a time that
depends on the file's length only. Metadata that does not change how an image looks is removed,
except from BMP and WebP.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

from service.imaging import avif, heif, jpeg_segments, png_chunks, tiff_header
from service.imaging.sanitized_file import Sanitized

_MAX_BLOCKS = 262_144  # of a GIF before its first frame
_BLOCK = re.compile(rb"[!,;]")  # an extension, a frame, the end
_CONTROL = b"\xf9"  # the extension with the transparent colour
_ANIMATED, _ALPHA = 0x02, 0x10  # flags of a WebP
_BMP_COMPRESSIONS = {1: "RLE8", 2: "RLE4", 3: "bit masks", 4: "JPEG", 5: "PNG"}
_BIT_MASKS = 3


def sanitize(data: bytes, kind: str) -> Sanitized:
    """Sanitize an image of a format, by Pillow's name for it.

    Raises `UnsupportedType` for a variant that cannot be decoded, and `ValueError` or
    `struct.error` for a file that must not reach a decoder.
    """
    return replace(_SANITIZERS[kind](data), kind=kind)


def _gif(data: bytes) -> Sanitized:
    """Remove the extensions before the first frame that do not change the image."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    offset = 13 + (6 << (flags & 7) if flags & 0x80 else 0)  # after the palette
    kept, count = [data[:offset]], 0
    while (block := _BLOCK.search(data, offset)) and block[0] == b"!":
        offset = block.end() + 1
        while offset < len(data) and data[offset]:
            offset += data[offset] + 1
            count += 1
        offset, count = offset + 1, count + 1
        if data[block.end() : block.end() + 1] == _CONTROL:
            kept.append(data[block.start() : offset])
        if count > _MAX_BLOCKS:
            raise ValueError("too many blocks")
    if block is None or block[0] == b";":
        raise ValueError("no frame")
    left, top, across, down = struct.unpack_from("<HHHH", data, block.end())
    kept.append(data[block.start() :])
    return Sanitized(
        b"".join(kept),
        buffer=(max(width, left + across), max(height, top + down)),
        frame=(left, top, left + across, top + down),
    )


def _webp(data: bytes) -> Sanitized:
    """Set an animation's alpha flag: pixels outside its frame are then transparent, not black."""
    buffer = _canvas(data)
    if data[12:16] == b"VP8X" and data[20] & _ANIMATED and not data[20] & _ALPHA:
        data = data[:20] + bytes([data[20] | _ALPHA]) + data[21:]
    return Sanitized(data, buffer=buffer)


def _canvas(data: bytes) -> tuple[int, int]:
    """Read a WebP's canvas size: its decoder allocates it before Pillow knows it."""
    if data[12:16] == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    across, down = struct.unpack_from("<HH", data, 26)
    return across & 0x3FFF, down & 0x3FFF


def _bmp(data: bytes) -> Sanitized:
    """Describe a BMP's variant, if its header is complete."""
    (size,) = struct.unpack_from("<I", data, 14)
    if len(data) < 14 + size:
        return Sanitized(data)
    if size < 40:  # noqa: PLR2004 - the header of OS/2
        return Sanitized(data, variant=f"a header of {size} bytes")
    bits, compression = struct.unpack_from("<HI", data, 28)
    parts = [f"{bits} bits a pixel"]
    if compression:
        parts.append(_BMP_COMPRESSIONS.get(compression, f"compression {compression}"))
    if compression == _BIT_MASKS and len(data) >= 66:  # noqa: PLR2004 - where the masks end
        parts.append("/".join(f"{mask:X}" for mask in struct.unpack_from("<III", data, 54)))
    return Sanitized(data, variant=", ".join(parts))


_SANITIZERS: Mapping[str, Callable[[bytes], Sanitized]] = {
    "JPEG": jpeg_segments.sanitize,
    "PNG": png_chunks.sanitize,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "TIFF": tiff_header.sanitize,
    "AVIF": avif.sanitize,
    "HEIF": heif.sanitize,
}
