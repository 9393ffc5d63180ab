"""Image sources: files, folders, and archives as they are read."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from service.errors import BulkError, UnreadableImage
from service.imaging import archives, image_folder
from service.imaging.archives import IsNew, Look, Source
from service.imaging.image_folder import LeaveOut

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


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
        yield from inside(file, archives.printable(file), look)


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


def _read_file(path: str, max_bytes: int) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe would block.
        with open(path, "rb", opener=_non_blocking) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableImage("it is not a regular file")
            return archives.bounded(file, max_bytes)
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read: {error.strerror}") from error


def _non_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _in_archive(path: Path, name: str, look: Look) -> Iterator[Source]:
    kind: archives.Kind = "zip" if path.name.lower().endswith(".zip") else "tar"
    try:
        yield from archives.images(lambda: path.open("rb"), kind, f"{name}/", look)
    except UnreadableImage as error:
        if look.is_new(name):
            yield archives.bad(name, error)
