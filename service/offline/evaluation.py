"""Accuracy of a model on a folder of labelled photos."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.errors import ModelError, ServiceError
from service.imaging import image_folder
from service.imaging.image_folder import LeaveOut
from service.models.ensemble import Prediction
from service.models.manifest import Label
from service.serving.classifier import Classifier
from service.serving.types import Answer

CHUNK = 32  # images in flight; enough to fill batches, few enough to keep in memory
TIMEOUT = 1e6  # seconds; images of offline work have no deadline

Ranked = tuple[Prediction, ...] | ServiceError

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo and the index of its class."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Score:
    """The hits of one view plan."""

    views: str
    photos: int
    top1: int
    top5: int
    unreadable: tuple[str, ...]


def find(
    folder: Path, labels: Sequence[Label], leave_out: LeaveOut = image_folder.ignore
) -> list[Photo]:
    """Find photos named by a WordNet id; without any, folders named by an id or a label.

    `leave_out` takes the files so named that are not images. Raises `ModelError` without photos,
    and for a class that the model does not have.
    """
    index = _index(labels)
    photos = []
    for path, name in _in_named_files(folder, leave_out) or _in_named_folders(folder, leave_out):
        if name not in index:
            raise ModelError(f"{path}: the model has no class {name!r}, or several")
        photos.append(Photo(path, index[name]))
    if not photos:
        raise ModelError(
            f"{folder} has no photos named by a WordNet id, nor folders named by a class"
        )
    return photos


def _index(labels: Sequence[Label]) -> dict[str, int]:
    """Map WordNet ids, and the names that only one class has, to classes."""
    count = Counter(label.name for label in labels)
    names = {label.name: index for index, label in enumerate(labels) if count[label.name] == 1}
    return names | {label.wnid: index for index, label in enumerate(labels) if label.wnid}


def _in_named_files(folder: Path, leave_out: LeaveOut) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    named = {
        path: match[0] for path in image_folder.files(folder) if (match := _WNID.match(path.name))
    }
    return [(path, named[path]) for path in image_folder.images(named, leave_out)]


def _in_named_folders(folder: Path, leave_out: LeaveOut) -> list[tuple[Path, str]]:
    subfolders = sorted(
        path for path in folder.iterdir() if path.is_dir() and image_folder.is_visible(path.name)
    )
    return [
        (path, subfolder.name)
        for subfolder in subfolders
        for path in image_folder.images(image_folder.files(subfolder), leave_out)
    ]


async def evaluate(
    classifier: Classifier, photos: Sequence[Photo], plan: str, advance: Callable[[int], None]
) -> Score:
    """Score a view plan on photos; `advance` takes the number of photos newly done."""
    ranked = await rank_all(classifier, photos, plan, advance, top_k=5)
    return score(plan, photos, ranked)


async def rank_all(
    classifier: Classifier,
    photos: Sequence[Photo],
    plan: str,
    advance: Callable[[int], None],
    *,
    top_k: int,
) -> list[Ranked]:
    """Rank the labels of photos, which need not fit into memory together.

    A photo that cannot be classified has its error instead. `advance` takes the number of photos
    newly done.
    """
    ranked: list[Ranked] = []
    async for _, answers in _answers(classifier, photos, plan, top_k=top_k):
        ranked += [a.predictions if isinstance(a, Answer) else a for a in answers]
        advance(len(answers))
    return ranked


def score(plan: str, photos: Sequence[Photo], ranked: Sequence[Ranked]) -> Score:
    """Count the photos whose class is ranked first, or among the first five."""
    top1 = top5 = 0
    unreadable = []
    for photo, predictions in zip(photos, ranked, strict=True):
        if isinstance(predictions, ServiceError):
            unreadable.append(f"{photo.path.name}: {predictions}")
            continue
        indices = [prediction.index for prediction in predictions[:5]]
        top1 += indices[0] == photo.index
        top5 += photo.index in indices
    return Score(plan, len(photos), top1, top5, tuple(unreadable))


async def all_probabilities(
    classifier: Classifier, photos: Sequence[Photo], plan: str, advance: Callable[[int], None]
) -> npt.NDArray[np.float64]:
    """Return probabilities (photos, classes), NaN for a photo that cannot be read.

    `advance` takes the number of photos newly done.
    """
    rows = np.full((len(photos), len(classifier.ensemble.labels)), np.nan)
    async for start, answers in _answers(classifier, photos, plan, top_k=1):
        for row, answer in enumerate(answers, start=start):
            if isinstance(answer, Answer):
                rows[row] = answer.probabilities
        advance(len(answers))
    return rows


async def _answers(
    classifier: Classifier, photos: Sequence[Photo], plan: str, *, top_k: int
) -> AsyncIterator[tuple[int, list[Answer | ServiceError]]]:
    """Classify photos, a few at a time; give the answers, and the number of the first."""
    for start in range(0, len(photos), CHUNK):
        images = [photo.path.read_bytes() for photo in photos[start : start + CHUNK]]
        yield start, await classifier.classify(images, plan=plan, top_k=top_k, seconds=TIMEOUT)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two rankings of the same photos, each of all classes."""

    same: int  # photos with the same first label
    furthest: float  # the largest difference between two probabilities
    different: tuple[str, ...]  # a sentence for each photo with another first label


def compare(
    photos: Sequence[Photo], exact: Sequence[Ranked], ranked: Sequence[Ranked]
) -> Agreement:
    """Compare rankings with exact ones, without the photos that could not be read."""
    same, furthest, different = 0, 0.0, []
    for photo, expected, actual in zip(photos, exact, ranked, strict=True):
        if isinstance(expected, ServiceError) or isinstance(actual, ServiceError):
            continue
        exact_by_class = {p.index: p.probability for p in expected}
        furthest = max(furthest, *(abs(p.probability - exact_by_class[p.index]) for p in actual))
        if actual[0].index == expected[0].index:
            same += 1
        else:
            different.append(
                f"{photo.path.name}: {actual[0].label} {actual[0].probability:.3f}, "
                f"exactly {expected[0].label} {expected[0].probability:.3f}"
            )
    return Agreement(same, furthest, tuple(different))
