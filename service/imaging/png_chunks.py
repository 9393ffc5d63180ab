"""Keep a PNG's chunks that change the image, and read those that Pillow does not expose."""

import struct
import zlib
from collections.abc import Iterator, Mapping

from service.imaging import colour_profile
from service.imaging.sanitized_file import Sanitized, unsupported

MAX_METADATA = 65_536  # bytes of EXIF, as in a JPEG's segment
_MAX_CHUNKS = 65_536

_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_EXIF_TEXT = b"Raw profile type exif\0"
_TEXTS = {b"tEXt", b"zTXt"}
_GREY, _COLOUR = 0, 2
_BITS = 8
_MAX_NAME = 79  # bytes of a profile's name


def sanitize(data: bytes) -> Sanitized:
    """Keep the chunks of pixels and transparency, and the first of each kind of EXIF.

    Raises `UnsupportedType` for Apple's variant, or `ValueError`.
    """
    view, kept, once = memoryview(data), [memoryview(data)[:8]], {b"eXIf", _EXIF_TEXT, b"tRNS"}
    contents: dict[bytes, bytes] = {}  # of the first chunk of each name
    for name, start, end in _chunks(data):
        if name == b"CgBI":
            raise unsupported("PNG", "of an iOS app, CgBI", "save it as an ordinary PNG")
        contents.setdefault(name, data[start : min(end, start + _content_limit(name))])
        is_text = name in _TEXTS and data.startswith(_EXIF_TEXT, start)
        key = _EXIF_TEXT if is_text else name
        if name in _PIXELS:
            kept.append(view[start - 8 : end + 4])
        elif key in once and end - start <= MAX_METADATA and not _is_colour_key(contents, name):
            once.remove(key)
            kept.append(view[start - 8 : end + 4])
    header = contents.get(b"IHDR", b"")
    transparent = _transparent(header, contents.get(b"tRNS", b""))
    bits = header[8] if transparent else _BITS
    return Sanitized(
        b"".join(kept),
        passes=2 if transparent and bits > _BITS else 1,  # the lower bits are decoded separately
        profile=_profile(contents.get(b"iCCP", b"")),
        transparent=transparent,
        bits=bits,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, and the start and end offset of its content."""
    offset = 8
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, offset)
        yield name, offset + 8, offset + 8 + length
        if name == b"IEND":
            return
        offset += 12 + length
    raise ValueError("too many chunks")


def _is_colour_key(contents: Mapping[bytes, bytes], name: bytes) -> bool:
    """Return whether a chunk is a transparent colour without a palette; `rgb` applies it."""
    colour_type = contents.get(b"IHDR", b"")[9:10]
    return name == b"tRNS" and colour_type in {bytes([_GREY]), bytes([_COLOUR])}


def _content_limit(name: bytes) -> int:
    """Return how many bytes of a chunk are read."""
    return {b"IHDR": 13, b"tRNS": 6, b"iCCP": colour_profile.MAX_BYTES}.get(name, 0)


def _profile(content: bytes) -> bytes:
    """Decompress a colour profile; empty if it is broken or too long."""
    name, _, compressed = content.partition(b"\0")
    if len(name) > _MAX_NAME:
        return b""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], colour_profile.MAX_BYTES)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


def _transparent(header: bytes, content: bytes) -> tuple[int, ...]:
    """Read the transparent grey or colour, in samples of the image's own depth."""
    if len(header) < 13:  # noqa: PLR2004 - an IHDR's bytes
        return ()
    bits, kind = header[8], header[9]
    count = {_GREY: 1, _COLOUR: 3}.get(kind, 0)
    if not count or len(content) != 2 * count:
        return ()
    return tuple(value & ((1 << bits) - 1) for value in struct.unpack(f">{count}H", content))
