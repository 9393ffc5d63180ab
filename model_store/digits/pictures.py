"""Handwritten digits as images: the data that the bundled model is made of.

1797 digits of 43 people, 8x8 grey levels each: the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0),
which scikit-learn carries. Every fifth is for testing only and no training sees it.

    python model_store/digits/pictures.py FOLDER

writes FOLDER/train/DIGIT/NUMBER.png and FOLDER/test/DIGIT/NUMBER.png.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MARGIN = 2  # of blank paper around the 8x8, so that a corner crop still shows the digit
SIDE = 72  # pixels of an image: large enough to look at
LEVELS = 16  # the darkest of the original's grey levels
TESTING = 5  # every so manieth is for testing


def main(folder: Path) -> None:
    """Write all images: dark ink on white paper, as people write."""
    digits = load_digits()
    for number, (grey, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if number % TESTING == 0 else "train"
        path = folder / part / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paper = np.rint(255 - np.pad(grey, MARGIN) * (255 / LEVELS)).astype(np.uint8)
        Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
