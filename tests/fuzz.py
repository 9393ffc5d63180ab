"""Fuzz the decoder, guided by the coverage of Pillow.

`python tests/fuzz.py FOLDER [libFuzzer's options]` continues from the corpus in FOLDER and the
small good images. It ends with a file crash-..., slow-... or oom-... when an image raises another
error than `ServiceError`, takes seconds or a gigabyte.
"""

import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "service"]):
    from mutations import good
    from PIL import Image

    from service.errors import ServiceError
    from service.imaging.image_decoder import decode

    Image.preinit()

MAX_PIXELS = 250_000
OPTIONS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=8192", "-close_fd_mask=2")


def fuzz(data: bytes) -> None:
    """Decode one input."""
    try:
        image = decode(data, max_pixels=MAX_PIXELS, seconds=2.0)
    except ServiceError:
        return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS


def main() -> None:
    """Add the good images to the folder and start."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(good()):
        (folder / f"good{number}").write_bytes(image)
    warnings.simplefilter("ignore")  # as in production
    atheris.Setup([sys.argv[0], *OPTIONS, f"-artifact_prefix={folder}/../", *sys.argv[1:]], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
