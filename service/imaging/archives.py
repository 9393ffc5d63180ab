"""Images in zip and tar archives, read one after the other without being unpacked to files."""

import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, Literal, Self

from service.errors import ServiceError, TooLarge, UnreadableImage
from service.imaging import image_folder
from service.imaging.image_folder import HEAD, LeaveOut

Kind = Literal["zip", "tar"]

_PACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others may need any amount of memory
_MOST_METADATA = 1 << 20  # bytes of a tar member's extended header
_METADATA = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}

# What the libraries raise for a broken archive.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, NotImplementedError, ValueError, UnicodeError),
)

IsNew = Callable[[str], bool]
"""Called once per name: whether its image is to be classified."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image by its name; `read` blocks, and returns its bytes or raises its `ServiceError`."""

    name: str
    read: Callable[[], bytes]
    held: int = 0  # bytes already in memory


@dataclass(frozen=True, slots=True)
class Look:
    """Which images to find."""

    max_bytes: int
    is_new: IsNew
    leave_out: LeaveOut = image_folder.ignore
    max_members: int = sys.maxsize  # images or not; raises `TooLarge` for more


def images(
    opened: Callable[[], io.BufferedReader], kind: Kind, prefix: str, look: Look
) -> Iterator[Source]:
    """Find an archive's images in their order, lazily: blocking.

    `image_folder.is_image` decides; other members are left out, archives too. Names begin with
    `prefix`. Reading an image of over `look.max_bytes` raises `TooLarge`. A broken archive ends
    with `UnreadableImage`.
    """
    members = _in_zip if kind == "zip" else _in_tar
    count = 0
    try:
        with opened() as file:
            for source in members(file, prefix, look):
                yield source
                count += 1
    except _BROKEN as error:
        sentence = f"the archive is broken or cut short after {count} images"
        raise UnreadableImage(sentence) from error


def printable(name: str) -> str:
    """Return a file's name in results: valid UTF-8, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def bounded(file: IO[bytes], max_bytes: int) -> bytes:
    """Read a file; raises `TooLarge`."""
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def too_large(max_bytes: int) -> TooLarge:
    """Make the error of an image of over `max_bytes`."""
    return TooLarge(f"the image has over {max_bytes} bytes")


def _check_number(number: int, look: Look) -> None:
    if number >= look.max_members:
        raise TooLarge(f"the archive has over {look.max_members} members")


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or not all(map(image_folder.is_visible, parts))


def _in_zip(file: io.BufferedReader, prefix: str, look: Look) -> Iterator[Source]:
    with zipfile.ZipFile(file) as archive:
        for number, member in enumerate(archive.infolist()):
            _check_number(number, look)
            name = prefix + printable(member.filename)
            if member.is_dir() or _is_hidden(member.filename):
                continue
            if not image_folder.is_image(member.filename, partial(_zipped_head, archive, member)):
                look.leave_out(name, image_folder.kind(name))
            elif look.is_new(name):
                yield _zipped(archive, member, name, look.max_bytes)


def _zipped_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in _PACKED:
        return b""
    try:
        with archive.open(member) as file:
            return file.read(HEAD)
    except _BROKEN:
        return b""


def _zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, max_bytes: int) -> Source:
    if member.file_size > max_bytes:
        return bad(name, too_large(max_bytes))
    if member.compress_type not in _PACKED:
        return bad(name, UnreadableImage("its compression is not supported"))
    try:
        with archive.open(member) as file:  # unpacks no more than its stated size
            data = bounded(file, max_bytes)
    except _BROKEN as error:
        return bad(name, UnreadableImage("it is encrypted or broken in its archive"), error)
    return _held(name, data)


def _in_tar(file: io.BufferedReader, prefix: str, look: Look) -> Iterator[Source]:
    number = 0
    with _streamed(file) as archive:
        while (member := archive.next()) is not None:
            _check_number(number, look)
            number += 1
            archive.members.clear()  # which would grow by every member
            name = prefix + printable(member.name)
            if member.isdir() or _is_hidden(member.name):
                continue
            if member.isfile():
                yield from _in_member(archive, member, name, look)
            else:
                look.leave_out(name, "link or special file")


def _streamed(file: io.BufferedReader) -> Any:
    """Open a tar as a stream: without seeking, so that one of any size, or a pipe, is read once.

    Its first bytes say whether it is compressed: some programs change that without the name.
    """
    kind = "r|gz" if file.peek(2)[:2] == b"\x1f\x8b" else "r|"
    return tarfile.open(fileobj=file, mode=kind, tarinfo=_Member)  # type: ignore[call-overload]  # it is one of the modes


def _in_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, look: Look
) -> Iterator[Source]:
    file = archive.extractfile(member)
    assert file is not None  # noqa: S101 - it is a regular file; tells mypy
    head = b""

    def read_head() -> bytes:
        nonlocal head
        head = file.read(HEAD)
        return head

    if not image_folder.is_image(member.name, read_head):
        look.leave_out(name, image_folder.kind(name))
    elif look.is_new(name):
        large = member.size > look.max_bytes
        yield bad(name, too_large(look.max_bytes)) if large else _held(name, head + file.read())


class _Member(tarfile.TarInfo):
    """A member with bounded metadata."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]  # None is its default
        if member.type in _METADATA and member.size > _MOST_METADATA:
            raise tarfile.ReadError(f"metadata of {member.size} bytes")
        return member


def _held(name: str, data: bytes) -> Source:
    return Source(name, io.BytesIO(data).getvalue, len(data))


def bad(name: str, error: ServiceError, cause: Exception | None = None) -> Source:
    """Make the source of an image that cannot be read."""

    def read() -> bytes:
        raise error from cause

    return Source(name, read)
