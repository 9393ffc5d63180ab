"""Handwritten digits as images: the data of the bundled model.

1797 digits of 43 people, 8x8 grey levels each: the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0),
which scikit-learn contains. Every fifth is for testing only.

    python model_store/digits/images.py FOLDER

writes FOLDER/train/DIGIT/NUMBER.png and FOLDER/test/DIGIT/NUMBER.png.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MARGIN = 2  # white pixels around the 8x8, so that a corner crop still shows the digit
SIDE = 72  # pixels of an image
LEVELS = 16  # the darkest of the original's grey levels
TESTING = 5  # every fifth is for testing


def main(folder: Path) -> None:
    """Write all images, dark on white."""
    digits = load_digits()
    for number, (grey, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if number % TESTING == 0 else "train"
        path = folder / part / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paper = np.rint(255 - np.pad(grey, MARGIN) * (255 / LEVELS)).astype(np.uint8)
        Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
