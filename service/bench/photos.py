"""The images to measure with."""

from collections.abc import Callable
from pathlib import Path

from service import folders
from service.errors import BenchError


def read(folder: Path, say: Callable[[str], object] = lambda _: None) -> list[bytes]:
    """Read a folder's images, in the order of their names; raises `BenchError` without any.

    `say` is called with a sentence about what was left out, if anything was.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder} is not a folder")
    left_out = folders.LeftOut()
    paths = folders.images(folders.files(folder), left_out.add)
    if not paths:
        none = f"{folder} has no images"
        raise BenchError("; ".join(filter(None, [none, left_out.sentence])))
    if left_out.sentence:
        say(left_out.sentence)
    return [path.read_bytes() for path in paths]
