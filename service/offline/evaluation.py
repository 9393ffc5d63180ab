"""How often a model is right on a folder of labelled photos."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
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
PATIENCE = 1e6  # seconds; nobody waits for one of these images

Ranked = tuple[Prediction, ...] | ServiceError

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo and the class it is of."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Score:
    """What came out for one plan of views."""

    views: str
    photos: int
    top1: int
    top5: int
    unreadable: tuple[str, ...]


def find(
    folder: Path, labels: Sequence[Label], leave_out: LeaveOut = image_folder.ignore
) -> list[Photo]:
    """Find photos named by a WordNet id; if there are none, folders named by an id or a label.

    Files so named that are no images are left out.

    Raises `ModelError` if there is nothing, or if the model does not know one's class.
    """
    index = _index(labels)
    photos = []
    for path, name in _named_files(folder, leave_out) or _named_folders(folder, leave_out):
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
    often = Counter(label.name for label in labels)
    index = {label.name: at for at, label in enumerate(labels) if often[label.name] == 1}
    return index | {label.wnid: at for at, label in enumerate(labels) if label.wnid}


def _named_files(folder: Path, leave_out: LeaveOut) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    named = {
        path: match[0] for path in image_folder.files(folder) if (match := _WNID.match(path.name))
    }
    return [(path, named[path]) for path in image_folder.images(named, leave_out)]


def _named_folders(folder: Path, leave_out: LeaveOut) -> list[tuple[Path, str]]:
    named = [
        path for path in folder.iterdir() if path.is_dir() and image_folder.is_visible(path.name)
    ]
    return [
        (path, within.name)
        for within in sorted(named)
        for path in image_folder.images(image_folder.files(within), leave_out)
    ]


async def rank(
    classifier: Classifier, paths: Sequence[Path], *, plan: str, top_k: int
) -> list[Ranked]:
    """Rank the labels of photos that may not fit in memory together, or say what is wrong."""
    ranked: list[Ranked] = []
    for at in range(0, len(paths), CHUNK):
        images = [path.read_bytes() for path in paths[at : at + CHUNK]]
        answers = await classifier.classify(images, plan=plan, top_k=top_k, seconds=PATIENCE)
        ranked += [a.predictions if isinstance(a, Answer) else a for a in answers]
    return ranked


async def evaluate(
    classifier: Classifier, photos: Sequence[Photo], plan: str, advance: Callable[[int], None]
) -> Score:
    """Score the photos with one plan of views; `advance` is told as photos are done."""
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
    """Rank the photos' labels; `advance` is told as photos are done."""
    ranked: list[Ranked] = []
    for at in range(0, len(photos), CHUNK):
        paths = [photo.path for photo in photos[at : at + CHUNK]]
        ranked += await rank(classifier, paths, plan=plan, top_k=top_k)
        advance(len(paths))
    return ranked


def score(plan: str, photos: Sequence[Photo], ranked: Sequence[Ranked]) -> Score:
    """Count how often the first label, or one of the first five, was right."""
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


def probabilities(
    photos: Sequence[Photo], ranked: Sequence[Ranked]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Give the probabilities of rankings of all classes, and the photos' classes.

    (photos, classes) and (photos,), without the photos that could not be read. None is quite
    0, so that all have a logarithm. Raises `ModelError` if no photo could be read.
    """
    rows, targets = [], []
    for photo, predictions in zip(photos, ranked, strict=True):
        if not isinstance(predictions, ServiceError):
            rows.append(_by_class(predictions))
            targets.append(photo.index)
    if not rows:
        raise ModelError("none of the photos can be read")
    return np.maximum(rows, np.finfo(np.float32).tiny), np.array(targets)


async def likely(
    classifier: Classifier, photos: Sequence[Photo], plan: str, advance: Callable[[int], None]
) -> npt.NDArray[np.float64]:
    """Give the probabilities of all classes, (photos, classes); of what cannot be read, NaN.

    `advance` is told as photos are done.
    """
    classes = len(classifier.ensemble.labels)
    found = np.full((len(photos), classes), np.nan)
    for at in range(0, len(photos), CHUNK):  # more would not fit into memory as predictions
        part = photos[at : at + CHUNK]
        ranked = await rank_all(classifier, part, plan, advance, top_k=classes)
        for place, predictions in enumerate(ranked, start=at):
            if not isinstance(predictions, ServiceError):
                found[place] = _by_class(predictions)
    return found


def _by_class(predictions: Sequence[Prediction]) -> list[float]:
    """Give the probabilities of a ranking of all classes in the order of the classes."""
    ordered = sorted(predictions, key=lambda prediction: prediction.index)
    return [prediction.probability for prediction in ordered]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near two rankings of the same photos are, of all classes each."""

    same: int  # photos with the same first label
    furthest: float  # the largest difference of a probability
    different: tuple[str, ...]  # a sentence for each photo with another first label


def compare(
    photos: Sequence[Photo], exact: Sequence[Ranked], ranked: Sequence[Ranked]
) -> Agreement:
    """Compare rankings with exact ones; photos that could not be read count for nothing."""
    same, furthest, different = 0, 0.0, []
    for photo, wanted, got in zip(photos, exact, ranked, strict=True):
        if isinstance(wanted, ServiceError) or isinstance(got, ServiceError):
            continue
        probable = {one.index: one.probability for one in wanted}
        furthest = max(furthest, *(abs(one.probability - probable[one.index]) for one in got))
        if got[0].index == wanted[0].index:
            same += 1
        else:
            different.append(
                f"{photo.path.name}: {got[0].label} {got[0].probability:.3f}, "
                f"exactly {wanted[0].label} {wanted[0].probability:.3f}"
            )
    return Agreement(same, furthest, tuple(different))
