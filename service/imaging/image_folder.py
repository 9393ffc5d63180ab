"""Find the image files of folders, and count the files that are skipped.

A file is an image if its suffix or its first bytes are of a supported format. So a photo without a
suffix is found, and a broken `.jpg` is an error instead of being skipped. Hidden files (names that
begin with a dot) are ignored and not counted.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from service.errors import UnsupportedType
from service.imaging.file_kinds import sniff

HEAD = 256  # bytes, enough to detect the format

_IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
}
# They begin as a TIFF, but the first image in them is a thumbnail.
_RAW_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".k25", ".kdc"),
    *(".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"),
}

NO_FILE = "broken link or special file"

_MAX_KINDS = 6  # that a message names
_MAX_SUFFIX = 10  # characters

LeaveOut = Callable[[str, str], None]
"""Is called with a skipped file's path and its kind."""


def ignore(_: str, __: str) -> None:
    """Do not count skipped files."""


@dataclass(slots=True)
class LeftOut:
    """The number of skipped files by kind, with the first path of each."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, name: str, kind: str) -> None:
        """Count a skipped file."""
        count, first = self.kinds.get(kind, (0, name if name.isprintable() else ascii(name)))
        self.kinds[kind] = (count + 1, first)

    @property
    def sentence(self) -> str:
        """A message about the skipped files, most frequent kinds first; empty if there are none."""
        if not self.kinds:
            return ""
        ordered = sorted(self.kinds.items(), key=lambda item: -item[1][0])
        parts = [f"{count} {kind} ({first})" for kind, (count, first) in ordered[:_MAX_KINDS]]
        if more := sum(count for _, (count, _) in ordered[_MAX_KINDS:]):
            parts.append(f"{more} of other kinds")
        return f"skipped, not images of a supported format: {', '.join(parts)}"


def walk(folder: Path, leave_out: LeaveOut = ignore) -> Iterator[str]:
    """Yield a folder tree's images, sorted by name; links to folders are not followed."""

    def unreadable(error: OSError) -> None:
        leave_out(str(error.filename), "unreadable folder")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if is_visible(name))
        for name in folders:
            if os.path.islink(path := os.path.join(parent, name)):  # noqa: PTH114, PTH118 - a million times
                leave_out(path, "link to a folder")
        for name in sorted(files):
            path = os.path.join(parent, name)  # noqa: PTH118 - the same
            if is_visible(name) and _check(path, leave_out):
                yield path


def images(paths: Iterable[Path], leave_out: LeaveOut = ignore) -> list[Path]:
    """Return the paths that are images."""
    return [path for path in paths if _check(str(path), leave_out)]


def files(folder: Path) -> list[Path]:
    """List a folder's files, images or not, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_visible(path.name) and not path.is_dir())


def is_visible(name: str) -> bool:
    """Return whether a file or folder is not hidden."""
    return not name.startswith(".")


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Return whether a file is an image; `head` reads its first bytes if the suffix is unknown."""
    suffix = _suffix(name)
    return suffix in _IMAGE_SUFFIXES or (suffix not in _RAW_SUFFIXES and _begins_as_image(head()))


def kind(name: str) -> str:
    """Return the kind of a file that is no image: its suffix."""
    suffix = _suffix(name)
    return suffix if suffix[1:].isalnum() and len(suffix) <= _MAX_SUFFIX else "without a suffix"


def _check(path: str, leave_out: LeaveOut) -> bool:
    if not os.path.isfile(path):  # noqa: PTH113 - a million times
        leave_out(path, NO_FILE)
        return False
    if is_image(path, partial(_head, path)):
        return True
    leave_out(path, kind(path))
    return False


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _begins_as_image(head: bytes) -> bool:
    try:
        detected = sniff(head, heic=True)  # where it is not enabled, its error says what to do
    except UnsupportedType:
        return False
    # Text may begin with BMP's two letters, but has no zeros.
    return detected != "BMP" or head[6:10] == bytes(4)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a million times
            return file.read(HEAD)
    except OSError:
        return b""
