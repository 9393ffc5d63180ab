"""Image sources: files, folders, and archives as they are read."""

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from service.errors import BulkError, ServiceError, TooLarge, UnreadableImage
from service.imaging import image_folder
from service.imaging.image_folder import HEAD, LeaveOut

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

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


def check(paths: Iterable[Path]) -> None:
    """Raise `BulkError` if a path does not exist."""
    for path in paths:
        if not path.exists():
            raise BulkError(f"there is no file {path}")


def images(
    paths: Sequence[Path],
    *,
    max_bytes: int,
    is_new: IsNew,
    leave_out: LeaveOut = image_folder.ignore,
) -> Iterator[Source]:
    """Find images in their order, lazily: blocking.

    A path is a folder, an image or an archive; in folders and archives, `image_folder.is_image`
    decides, and other files are left out. Reading an image of over `max_bytes` raises `TooLarge`.
    A broken archive ends with a source whose `read` raises `UnreadableImage`.
    """
    look = Look(max_bytes, is_new, leave_out)
    for file in files(paths, leave_out):
        yield from inside(file, named(file), look)


def files(paths: Iterable[Path], leave_out: LeaveOut = image_folder.ignore) -> Iterator[str]:
    """Find images and archives, in their order."""
    for path in paths:
        if path.is_dir():
            yield from image_folder.walk(path, leave_out)
        else:
            yield str(path)


def inside(file: str, name: str, look: Look) -> Iterator[Source]:
    """Find the images of a file, as `images` does; their names begin with, or are, `name`."""
    if is_archive(file):
        yield from _in_archive(Path(file), name, look)
    elif look.is_new(name):
        yield Source(name, partial(_read_file, file, look.max_bytes))


def is_archive(file: str) -> bool:
    """Return whether a file is an archive, by its name."""
    return file.lower().endswith(ARCHIVES)


def named(file: str) -> str:
    """Return a file's name in results: valid UTF-8, whatever its bytes."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def once(done: set[str]) -> IsNew:
    """Accept each name once, unless it is in `done`."""

    def is_new(name: str) -> bool:
        if name in done:
            return False
        done.add(name)
        return True

    return is_new


def count(paths: Sequence[Path]) -> int | None:
    """Count the images; None with an archive, which would have to be read through."""
    total = 0
    for path in paths:
        if path.is_dir():
            total += sum(1 for _ in image_folder.walk(path))
        elif is_archive(path.name):
            return None
        else:
            total += 1
    return total


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or not all(map(image_folder.is_visible, parts))


def _read_file(path: str, max_bytes: int) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe would block.
        with open(path, "rb", opener=_non_blocking) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableImage("it is not a regular file")
            return _bounded(file, max_bytes)
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read: {error.strerror}") from error


def _non_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _bounded(file: IO[bytes], max_bytes: int) -> bytes:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the image has over {max_bytes} bytes")


def _in_archive(path: Path, name: str, look: Look) -> Iterator[Source]:
    members = _in_zip if path.name.lower().endswith(".zip") else _in_tar
    count = 0
    try:
        for source in members(path, name, look):
            yield source
            count += 1
    except _BROKEN as error:
        if look.is_new(name):
            sentence = f"the archive is broken or cut short after {count} images"
            yield _bad(name, UnreadableImage(sentence), error)


def _in_zip(path: Path, file: str, look: Look) -> Iterator[Source]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = f"{file}/{named(member.filename)}"
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
        return _bad(name, _too_large(max_bytes))
    if member.compress_type not in _PACKED:
        return _bad(name, UnreadableImage("its compression is not supported"))
    try:
        with archive.open(member) as file:  # unpacks no more than its stated size
            data = _bounded(file, max_bytes)
    except _BROKEN as error:
        return _bad(name, UnreadableImage("it is encrypted or broken in its archive"), error)
    return _held(name, data)


def _in_tar(path: Path, file: str, look: Look) -> Iterator[Source]:
    with path.open("rb") as whole, _streamed(whole) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # which would grow by every member
            name = f"{file}/{named(member.name)}"
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
        yield _bad(name, _too_large(look.max_bytes)) if large else _held(name, head + file.read())


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


def _bad(name: str, error: ServiceError, cause: Exception | None = None) -> Source:
    def read() -> bytes:
        raise error from cause

    return Source(name, read)
