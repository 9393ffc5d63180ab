"""The images to train on, and which of them are held out."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service import cpu_info
from service.errors import ModelError, ServiceError
from service.imaging import crops, image_decoder, image_folder
from service.imaging.image_folder import LeaveOut

Progress = Callable[[int, int], None]
"""Takes how many images have been checked, and of how many."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file and the index of its class."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and deviation of the pixels, 0 to 255, by channel (RGB)."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Distinct, readable images."""

    classes: tuple[str, ...]
    training: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    statistics: Statistics
    """Of `training`."""
    fingerprint: str
    """SHA-256 of the images and their classes, independent of file names."""
    left_out: tuple[str, ...]
    """A sentence about each file that is not used."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """A readable image file, its SHA-256 and its pixels' moments."""

    image: Sample
    digest: str
    moments: npt.NDArray[np.float64]
    """(2, 3): by channel the mean of the pixels, and of their squares."""


def read(folder: Path, share: float, *, max_pixels: int, progress: Progress) -> Dataset:
    """Read every image of a folder with a subfolder for each class.

    Of each class, `share` is held out: the images with the lowest SHA-256, so that an image
    added later moves no other, and copies of an image are never on both sides. Raises
    `ModelError` without two classes of two images each.
    """
    left_out: list[str] = []
    paths = _paths(folder, lambda name, kind: left_out.append(f"{name}: not an image ({kind})"))
    classes = tuple(sorted(paths))
    samples = [Sample(path, index) for index, name in enumerate(classes) for path in paths[name]]
    checked: list[_Checked] = []
    with ThreadPoolExecutor(cpu_info.available()) as pool:
        results = pool.map(lambda sample: _check(sample, max_pixels), samples)
        for done, result in enumerate(results, start=1):
            if isinstance(result, str):
                left_out.append(result)
            else:
                checked.append(result)
            progress(done, len(samples))
    distinct, copies = _distinct(checked)
    training, held_out = _divide(distinct, classes, share)
    return Dataset(
        classes,
        tuple(file.image for file in training),
        tuple(file.image for file in held_out),
        _statistics(training),
        _fingerprint(distinct, classes),
        (*left_out, *copies),
    )


def _paths(folder: Path, leave_out: LeaveOut) -> Mapping[str, Sequence[Path]]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    subfolders = [
        path for path in folder.iterdir() if path.is_dir() and image_folder.is_visible(path.name)
    ]
    if wrong := [path.name for path in subfolders if not path.name.isprintable()]:
        raise ModelError(f"{wrong[0]!r} cannot be the name of a class")
    if len(subfolders) < 2:  # noqa: PLR2004 - a classifier needs two classes
        raise ModelError(f"{folder} needs a folder of images for each of two classes or more")
    return {
        path.name: image_folder.images(image_folder.files(path), leave_out) for path in subfolders
    }


def _check(image: Sample, max_pixels: int) -> _Checked | str:
    """Decode an image, or say why it cannot be used."""
    try:
        data = image.path.read_bytes()
        upright = image_decoder.decode(data, max_pixels=max_pixels, min_side=crops.CROP)
    except (ServiceError, OSError) as error:
        return f"{image.path}: {error}"
    pixels = np.asarray(upright, dtype=np.float64).reshape(-1, 3)
    moments = np.stack([pixels.mean(0), np.square(pixels).mean(0)])
    return _Checked(image, hashlib.sha256(data).hexdigest(), moments)


def _distinct(checked: Sequence[_Checked]) -> tuple[list[_Checked], list[str]]:
    """Keep one copy of each image, and none of an image that is in two classes."""
    copies: dict[str, list[_Checked]] = defaultdict(list)
    for file in checked:
        copies[file.digest].append(file)
    kept, sentences = [], []
    for first, *others in copies.values():
        if any(other.image.index != first.image.index for other in others):
            sentences.append(f"{first.image.path}: the same image is in another class")
            continue
        kept.append(first)
        sentences += [f"{o.image.path}: the same image as {first.image.path}" for o in others]
    return kept, sentences


def _divide(
    checked: Sequence[_Checked], classes: Sequence[str], share: float
) -> tuple[list[_Checked], list[_Checked]]:
    """Divide the images of each class into those to train on and those held out."""
    count = Counter(file.image.index for file in checked)
    for index, name in enumerate(classes):
        if count[index] < 2:  # noqa: PLR2004 - one for each side
            raise ModelError(f"class {name!r} needs two different images or more")
    left = {index: min(max(1, round(n * share)), n - 1) for index, n in count.items()}
    training: list[_Checked] = []
    held_out: list[_Checked] = []
    for file in sorted(checked, key=lambda file: file.digest):
        index = file.image.index
        side = held_out if left[index] else training
        left[index] -= side is held_out
        side.append(file)
    return training, held_out


def _statistics(checked: Sequence[_Checked]) -> Statistics:
    mean, square = np.mean([file.moments for file in checked], axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 1))
    red, green, blue = (round(float(value), 2) for value in mean)
    return Statistics((red, green, blue), tuple(round(float(d), 2) for d in deviation))  # type: ignore[arg-type]  # three of them


def _fingerprint(checked: Sequence[_Checked], classes: Sequence[str]) -> str:
    lines = sorted(f"{file.digest} {classes[file.image.index]}\n" for file in checked)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
