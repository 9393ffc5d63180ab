"""The pictures to measure with."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

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


def sample() -> bytes:
    """Make a picture that takes about as long to decode as a photo of its size."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return file.getvalue()
