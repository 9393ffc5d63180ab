"""The pictures to measure with."""

from pathlib import Path

from service.errors import BenchError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def read(folder: Path) -> list[bytes]:
    """Read a folder's pictures, in the order of their names; raises `BenchError` without any."""
    if not folder.is_dir():
        raise BenchError(f"{folder} is not a folder")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise BenchError(f"{folder} has no pictures")
    return [path.read_bytes() for path in paths]
