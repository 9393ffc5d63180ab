"""A body that is an archive of images: zip, or tar, by its media type."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping

from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.imaging import archives
from service.imaging.archives import Kind, Look, Source

KINDS: Mapping[str, Kind] = {"application/zip": "zip", "application/x-tar": "tar"}

_MAX_MEMBERS = 10_000  # images or not
_ZIP_ENTRY = b"PK\1\2"  # begins each entry of a zip's directory, which is read as a whole
_GZIP = b"\x1f\x8b"


async def images(
    body: bytes, kind: Kind, *, max_bytes: int, max_images: int
) -> AsyncIterator[tuple[str, bytes | ServiceError]]:
    """Give an archive's images by name, or the error of each that cannot be read.

    They have `max_bytes` together: that bounds what a small archive may unpack to. Other members,
    archives too, are left out unread. Raises `TooLarge`, `UnreadableImage` or `UnsupportedType`.
    """
    if body.startswith(_GZIP):
        raise UnsupportedType("the archive is compressed with gzip; send it uncompressed")
    if kind == "zip" and body.count(_ZIP_ENTRY) > _MAX_MEMBERS:
        raise TooLarge(f"the archive has over {_MAX_MEMBERS} members")
    look = Look(max_bytes, lambda _: True, max_members=_MAX_MEMBERS)
    sources = archives.images(lambda: io.BufferedReader(io.BytesIO(body)), kind, "", look)
    count = unpacked = 0
    while source := await asyncio.to_thread(next, sources, None):
        count += 1
        unpacked += source.held
        if count > max_images:
            raise TooLarge(f"the archive has over {max_images} images; send fewer")
        if unpacked > max_bytes:
            raise TooLarge(f"the archive's images are over {max_bytes} bytes; send fewer")
        yield source.name, _read(source)
    if not count:
        raise UnreadableImage("the archive has no image")


def _read(source: Source) -> bytes | ServiceError:
    """Read an image that is in memory; its error stands for it in the response."""
    try:
        return source.read()
    except ServiceError as error:
        return error
