"""A PNG's chunks: which of them change the image, and what they say that Pillow does not."""

import struct
import zlib
from collections.abc import Iterator, Mapping

from service.imaging import colour_profile
from service.imaging.sanitized_file import Sanitized, refusal

MOST_METADATA = 65_536  # bytes of EXIF: no more fit in a JPEG's segment
_MOST_CHUNKS = 65_536

_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_EXIF_TEXT = b"Raw profile type exif\0"
_TEXTS = {b"tEXt", b"zTXt"}
_GREY, _COLOUR = 0, 2
_BITS = 8
_NAME = 79  # bytes of a profile's name, at most


def sanitize(data: bytes) -> Sanitized:
    """Keep the chunks that say how it looks, and one of each that says which way is up.

    Raises `UnsupportedType` for Apple's own kind, or `ValueError`.
    """
    view, kept, wanted = memoryview(data), [memoryview(data)[:8]], {b"eXIf", _EXIF_TEXT, b"tRNS"}
    said: dict[bytes, bytes] = {}
    for name, start, end in _chunks(data):
        if name == b"CgBI":
            raise refusal("PNG", "of an iOS app, CgBI", "save it as an ordinary PNG")
        said.setdefault(name, data[start : min(end, start + _most(name))])
        is_text = name in _TEXTS and data.startswith(_EXIF_TEXT, start)
        key = _EXIF_TEXT if is_text else name
        if name in _PIXELS:
            kept.append(view[start - 8 : end + 4])
        elif key in wanted and end - start <= MOST_METADATA and not _is_ours(said, name):
            wanted.remove(key)
            kept.append(view[start - 8 : end + 4])
    header = said.get(b"IHDR", b"")
    transparent = _transparent(header, said.get(b"tRNS", b""))
    bits = header[8] if transparent else _BITS
    return Sanitized(
        b"".join(kept),
        passes=2 if transparent and bits > _BITS else 1,  # to look at the lower bits as well
        profile=_profile(said.get(b"iCCP", b"")),
        transparent=transparent,
        bits=bits,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Give each chunk's name, and where its content begins and ends."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, at + 8 + length
        if name == b"IEND":
            return
        at += 12 + length
    raise ValueError("too many chunks")


def _is_ours(said: Mapping[bytes, bytes], name: bytes) -> bool:
    """Tell whether a chunk says what is transparent without a palette, which is done here."""
    return name == b"tRNS" and said.get(b"IHDR", b"")[9:10] in {bytes([_GREY]), bytes([_COLOUR])}


def _most(name: bytes) -> int:
    """Give how many bytes of a chunk are looked at here."""
    return {b"IHDR": 13, b"tRNS": 6, b"iCCP": colour_profile.MOST}.get(name, 0)


def _profile(content: bytes) -> bytes:
    """Inflate a colour profile, if it is not too long; nothing where it is broken."""
    name, _, compressed = content.partition(b"\0")
    if len(name) > _NAME:
        return b""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], colour_profile.MOST)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


def _transparent(header: bytes, content: bytes) -> tuple[int, ...]:
    """Read which grey or colour is transparent, in samples of the image's own depth."""
    if len(header) < 13:  # noqa: PLR2004 - an IHDR's bytes
        return ()
    bits, kind = header[8], header[9]
    count = {_GREY: 1, _COLOUR: 3}.get(kind, 0)
    if not count or len(content) != 2 * count:
        return ()
    return tuple(value & ((1 << bits) - 1) for value in struct.unpack(f">{count}H", content))
