"""Probabilities of labelled photos, by view: what a calibration is fitted to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from service.engine.engine import Engine
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, ServiceError
from service.imaging.image_decoder import Bounds
from service.models import calibration
from service.models.ensemble import ByView
from service.offline.evaluation import Photo
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Slice

PLAN = "adaptive"  # the views of `ten`, that of `single` first


@dataclass(frozen=True, slots=True)
class ViewProbabilities:
    """What a network says of each view of labelled images."""

    views: npt.NDArray[np.float32]  # (images, views, classes), in the order of `adaptive`
    targets: npt.NDArray[np.int64]  # (images,) true classes
    ends: tuple[int, ...]  # the number of views after each stage

    def means(self, now: float, wanted: float) -> npt.NDArray[np.float64]:
        """Return the mean after each stage, (images, stages, classes), of another temperature.

        `now` is the softmax temperature of the probabilities.
        """
        return np.array([self._means(image, now, wanted) for image in self.views])

    def _means(
        self, image: npt.NDArray[np.float32], now: float, wanted: float
    ) -> list[npt.NDArray[np.floating]]:
        sums = calibration.tempered(image, now, wanted).cumsum(axis=0)
        return [sums[end - 1] / end for end in self.ends]


def measure(
    engine: Engine, photos: Sequence[Photo], bounds: Bounds, advance: Callable[[int], None]
) -> ViewProbabilities:
    """Compute each view of the photos with an engine of one model, in this process.

    A photo that cannot be decoded is left out; raises `ModelError` if none can. `advance` takes
    the number of photos newly done.
    """
    pairs = [*each(engine, photos, bounds, advance, PLAN)]
    if not pairs:
        raise ModelError("none of the photos can be read")
    rows, targets = np.array([views for _, views in pairs]), [photo.index for photo, _ in pairs]
    return ViewProbabilities(rows, np.array(targets), ends(engine, PLAN))


def each(
    engine: Engine,
    photos: Sequence[Photo],
    bounds: Bounds,
    advance: Callable[[int], None],
    views: str,
) -> Iterator[tuple[Photo, ByView]]:
    """Compute each view of a photo after the other, leaving out those that cannot be decoded."""
    for photo in photos:
        try:
            (prepared,) = engine.prepare(photo.path.read_bytes(), views, bounds)
        except ServiceError:
            continue
        finally:
            advance(1)
        yield photo, _by_view(engine, prepared)


def ends(engine: Engine, views: str) -> tuple[int, ...]:
    """Return the number of views after each stage of a plan of an engine's only model."""
    (plan,) = engine.ensemble.plans(views)
    return tuple(stage.stop for stage in plan.stages)


def _by_view(engine: Engine, prepared: PreparedImage) -> ByView:
    """Compute the probabilities of one image by view."""
    key, costs = Key(0, prepared.plan.side), engine.ensemble.costs
    views = [Slice(prepared, view, view + 1) for view in range(len(prepared.plan.views))]
    most = costs.largest(key)
    results: list[ByView] = []
    for start in range(0, len(views), most):
        part = tuple(views[start : start + most])
        size = costs.curves[key].fitting(len(part))
        results += cast("Sequence[ByView]", engine.executors[0].run(Batch(key, size, part, "full")))
    return np.vstack(results)
