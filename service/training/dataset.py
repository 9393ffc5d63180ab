"""The images to learn from: which there are, and which of them are held out."""

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

Progress = Callable[[int, int], None]
"""Told how many images are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A file and the class it is of."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the pixels, 0 to 255, by channel: RGB."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images that are all different and can all be read."""

    classes: tuple[str, ...]
    learnt: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    statistics: Statistics
    """Of those that are learnt from."""
    fingerprint: str
    """SHA-256 of the images' and their classes', whatever the files are called."""
    left_out: tuple[str, ...]
    """A sentence about each file that is not used."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found in a file."""

    image: Sample
    digest: str
    moments: npt.NDArray[np.float64]
    """(2, 3): by channel the mean of the pixels, and of their squares."""


def read(folder: Path, share: float, *, max_pixels: int, progress: Progress) -> Dataset:
    """Look at every image of a folder of folders, whose names are the classes.

    Of each class this share is held out: those whose SHA-256 comes first, so that an image
    that is added later moves no other, and copies of one image are never on both sides.
    Raises `ModelError` where there are not two classes with two images each.
    """
    paths = _paths(folder)
    classes = tuple(sorted(paths))
    files = [Sample(path, at) for at, name in enumerate(classes) for path in paths[name]]

    def look(image: Sample) -> _Seen | str:
        return _look(image, max_pixels)

    looks = []
    with ThreadPoolExecutor(cpu_info.available()) as pool:
        for done, found in enumerate(pool.map(look, files), start=1):
            looks.append(found)
            progress(done, len(files))
    different, copies = _different([one for one in looks if isinstance(one, _Seen)])
    left_out = [one for one in looks if isinstance(one, str)] + copies
    learnt, held_out = _divided(different, classes, share)
    return Dataset(
        classes,
        tuple(one.image for one in learnt),
        tuple(one.image for one in held_out),
        _statistics(learnt),
        _fingerprint(different, classes),
        tuple(left_out),
    )


def _paths(folder: Path) -> Mapping[str, Sequence[Path]]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    named = [
        path for path in folder.iterdir() if path.is_dir() and image_folder.is_visible(path.name)
    ]
    if wrong := [path.name for path in named if not path.name.isprintable()]:
        raise ModelError(f"{wrong[0]!r} cannot be the name of a class")
    found = {path.name: image_folder.files(path) for path in named}
    if len(found) < 2:  # noqa: PLR2004 - fewer cannot be told apart
        raise ModelError(f"{folder} needs a folder of images for each of two classes or more")
    return found


def _look(image: Sample, max_pixels: int) -> _Seen | str:
    if not image.path.is_file():
        return f"{image.path}: {image_folder.NO_FILE}"
    try:
        data = image.path.read_bytes()
        upright = image_decoder.decode(data, max_pixels=max_pixels, enough=crops.CROP)
    except (ServiceError, OSError) as error:
        return f"{image.path}: {error}"
    pixels = np.asarray(upright, dtype=np.float64).reshape(-1, 3)
    moments = np.stack([pixels.mean(0), np.square(pixels).mean(0)])
    return _Seen(image, hashlib.sha256(data).hexdigest(), moments)


def _different(seen: Sequence[_Seen]) -> tuple[list[_Seen], list[str]]:
    """Keep one of each image's copies, and none that is in two classes."""
    copies: dict[str, list[_Seen]] = defaultdict(list)
    for one in seen:
        copies[one.digest].append(one)
    kept, sentences = [], []
    for first, *others in copies.values():
        if any(other.image.index != first.image.index for other in others):
            sentences.append(f"{first.image.path}: the same image is in another class")
            continue
        kept.append(first)
        sentences += [f"{o.image.path}: the same image as {first.image.path}" for o in others]
    return kept, sentences


def _divided(
    seen: Sequence[_Seen], classes: Sequence[str], share: float
) -> tuple[list[_Seen], list[_Seen]]:
    """Divide the images of each class into those that are learnt from and those held out."""
    by_digest = sorted(seen, key=lambda one: one.digest)
    count = Counter(one.image.index for one in seen)
    for index, name in enumerate(classes):
        if count[index] < 2:  # noqa: PLR2004 - one for each side
            raise ModelError(f"class {name!r} needs two different images or more")
    room = {index: min(max(1, round(n * share)), n - 1) for index, n in count.items()}
    learnt: list[_Seen] = []
    held_out: list[_Seen] = []
    for one in by_digest:
        index = one.image.index
        side = held_out if room[index] else learnt
        room[index] -= side is held_out
        side.append(one)
    return learnt, held_out


def _statistics(seen: Sequence[_Seen]) -> Statistics:
    mean, square = np.mean([one.moments for one in seen], axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 1))
    red, green, blue = (round(float(value), 2) for value in mean)
    return Statistics((red, green, blue), tuple(round(float(d), 2) for d in deviation))  # type: ignore[arg-type]  # three of them


def _fingerprint(seen: Sequence[_Seen], classes: Sequence[str]) -> str:
    lines = sorted(f"{one.digest} {classes[one.image.index]}\n" for one in seen)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
