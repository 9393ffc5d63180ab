"""A picture as a caller has it, to its bytes."""

import os
from pathlib import Path
from typing import BinaryIO

from service.client.errors import Unreadable

Picture = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""A picture's bytes, its path, or a file that is open for reading bytes."""


def read(picture: Picture) -> bytes | Unreadable:
    """Give the bytes, or why there are none: blocking."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    try:
        if isinstance(picture, str | os.PathLike):
            return Path(picture).read_bytes()
        data = picture.read()
    except OSError as error:
        return Unreadable(f"the picture cannot be read: {error}", code="unreadable_file")
    if not isinstance(data, bytes):
        return Unreadable("open the picture's file in binary mode", code="unreadable_file")
    return data
