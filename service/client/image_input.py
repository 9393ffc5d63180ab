"""The ways to pass an image to the client, and how its bytes are read."""

import os
from pathlib import Path
from typing import BinaryIO

from service.client.errors import Unreadable

ImageInput = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""An image's bytes, its path, or a file that is open for reading bytes."""


def read(image: ImageInput) -> bytes | Unreadable:
    """Read an image's bytes, blocking; returns the error where that fails."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    try:
        if isinstance(image, str | os.PathLike):
            return Path(image).read_bytes()
        data = image.read()
    except OSError as error:
        return Unreadable(f"cannot read the image: {error}", code="unreadable_file")
    if not isinstance(data, bytes):
        return Unreadable("open the image's file in binary mode", code="unreadable_file")
    return data
