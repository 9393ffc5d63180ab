"""Label sets of the real network on photos that their thresholds were not fitted to."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from service.engine.engine import Engine
from service.imaging.image_decoder import Bounds
from service.models import conformal, stopping_fit
from service.models.conformal import Promise
from service.models.ensemble import Ensemble
from service.models.stopping_rule import LEAD
from service.offline import evaluation, view_probabilities
from service.offline.evaluation import Photo


def photos(ensemble: Ensemble) -> list[Photo]:
    """All photos that are shared: 100 named by an id, and 16 by a label."""
    named = sorted((SHARED / "photos/flickr").glob("*.jpg"))
    labels = [path.stem.replace("_", " ") for path in named]
    indices = [ensemble.find("notebook" if "notebook" in label else label) for label in labels]
    others = [Photo(*pair) for pair in zip(named, indices, strict=True)]
    return [*evaluation.find(SHARED / "photos", ensemble.labels), *others]


def is_first_half(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).digest()[0] % 2 == 0


@pytest.mark.slow
def test_sets_hold_the_true_class_of_as_many_other_photos(real_engine: Engine) -> None:
    """With n photos in one half, the coverage of others is of a beta distribution around it."""
    found = photos(real_engine.ensemble)
    measured = view_probabilities.measure(real_engine, found, Bounds(10**8), lambda _: None)
    means, targets = measured.means(1, 1), measured.targets
    first = np.array([is_first_half(photo.path) for photo in found])
    plans = {"single": means[:, 0], "adaptive": stopping_fit.looked(means, LEAD)}
    random = np.random.default_rng(0)
    for inside, outside in ((first, ~first), (~first, first)):
        sets = conformal.fit({plan: p[inside] for plan, p in plans.items()}, targets[inside])
        count, others = int(inside.sum()), int(outside.sum())
        for plan, likely in plans.items():
            pairs = dict(zip(sets.levels, sets.thresholds[plan], strict=True))
            for level in (0.8, 0.9, 0.95):
                promise = Promise(level, pairs[level])
                right = likely[outside, targets[outside]]
                rank = conformal.rank(count, level)
                drawn = random.binomial(others, random.beta(rank, count + 1 - rank, 100_000))
                low, high = np.quantile(drawn, (0.005, 0.995))
                assert low <= (right >= promise.threshold).sum() <= high, (plan, level)
