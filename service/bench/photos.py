"""The images of a benchmark."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from service.errors import BenchError
from service.imaging import image_folder


def read(folder: Path, say: Callable[[str], object] = lambda _: None) -> list[bytes]:
    """Read a folder's images, in the order of their names; raises `BenchError` without any.

    `say` takes a sentence about files that were left out.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder} is not a folder")
    left_out = image_folder.LeftOut()
    paths = image_folder.images(image_folder.files(folder), left_out.add)
    if not paths:
        sentences = [f"{folder} has no images", left_out.sentence]
        raise BenchError("; ".join(filter(None, sentences)))
    if left_out.sentence:
        say(left_out.sentence)
    return [path.read_bytes() for path in paths]


def sample() -> bytes:
    """Make an image that takes about as long to decode as a photo of its size."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return file.getvalue()
