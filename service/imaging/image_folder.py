"""Image files of folders: which files are images, and which were left out.

A file is an image if its name promises one of the formats that are read, or if its first bytes
show it. So a photo without a suffix is found, and a `.jpg` that is broken is an error of its own
instead of being passed over. Names that begin with a dot are passed over in silence: they are
what systems and editors keep beside files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from service.errors import UnsupportedType
from service.imaging.file_kinds import sniff

HEAD = 256  # bytes, of which the first show the format

_PROMISING = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
}
# Their first bytes are TIFF's, but the first image in them is a thumbnail.
_RAW = {".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".k25", ".kdc", ".nef", ".nrw"} | {
    *(".orf", ".pef", ".rw2", ".srw")
}

NO_FILE = "broken link or special file"

_KINDS = 6  # that a message names
_LONGEST = 10  # characters of a suffix

LeaveOut = Callable[[str, str], None]
"""Takes the name of what is left out, and its kind."""


def ignore(_: str, __: str) -> None:
    """Keep no account of what is left out."""


@dataclass(slots=True)
class LeftOut:
    """Counts what was left out, by kind, with the first name of each."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, name: str, kind: str) -> None:
        """Count one more."""
        count, first = self.kinds.get(kind, (0, name if name.isprintable() else ascii(name)))
        self.kinds[kind] = (count + 1, first)

    @property
    def sentence(self) -> str:
        """What was left out, most frequent kinds first; empty if that is nothing."""
        if not self.kinds:
            return ""
        ordered = sorted(self.kinds.items(), key=lambda item: -item[1][0])
        told = [f"{count} {kind} ({first})" for kind, (count, first) in ordered[:_KINDS]]
        if more := sum(count for _, (count, _) in ordered[_KINDS:]):
            told.append(f"{more} of other kinds")
        return f"left out, as no images of a format that is read: {', '.join(told)}"


def below(folder: Path, leave_out: LeaveOut = ignore) -> Iterator[str]:
    """Walk a folder's images, in the order of names; links to other folders are not followed."""

    def unreadable(error: OSError) -> None:
        leave_out(str(error.filename), "unreadable folder")

    for where, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if is_visible(name))
        for name in folders:
            if os.path.islink(path := os.path.join(where, name)):  # noqa: PTH114, PTH118 - a million times
                leave_out(path, "link to a folder")
        for name in sorted(files):
            path = os.path.join(where, name)  # noqa: PTH118 - the same
            if is_visible(name) and _is_taken(path, leave_out):
                yield path


def images(paths: Iterable[Path], leave_out: LeaveOut = ignore) -> list[Path]:
    """Keep the files that are images."""
    return [path for path in paths if _is_taken(str(path), leave_out)]


def files(folder: Path) -> list[Path]:
    """Find the files of a folder, images or not, in the order of names."""
    return sorted(path for path in folder.iterdir() if is_visible(path.name) and not path.is_dir())


def is_visible(name: str) -> bool:
    """Return whether a name is of a file or folder that people see."""
    return not name.startswith(".")


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Return whether a file is taken for an image; `head` reads its first bytes, if need be."""
    suffix = _suffix(name)
    return suffix in _PROMISING or (suffix not in _RAW and _shows_image(head()))


def kind(name: str) -> str:
    """Name the kind of a file that is no image."""
    suffix = _suffix(name)
    return suffix if suffix[1:].isalnum() and len(suffix) <= _LONGEST else "without a suffix"


def _is_taken(path: str, leave_out: LeaveOut) -> bool:
    if not os.path.isfile(path):  # noqa: PTH113 - a million times
        leave_out(path, NO_FILE)
        return False
    if is_image(path, partial(_head, path)):
        return True
    leave_out(path, kind(path))
    return False


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _shows_image(head: bytes) -> bool:
    try:
        found = sniff(head, heic=True)  # which is refused, with what to do, where it is not read
    except UnsupportedType:
        return False
    # A text may begin with BMP's two letters, but has no zeros in it.
    return found != "BMP" or head[6:10] == bytes(4)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a million times
            return file.read(HEAD)
    except OSError:
        return b""
