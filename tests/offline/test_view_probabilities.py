"""Probabilities of labelled photos, by view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import AS_IT_IS, fake_backend, mean_colour
from PIL import Image

from service.engine.engine import Engine
from service.engine.executor import DeviceExecutor
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError
from service.imaging.image_decoder import Bounds
from service.models import calibration
from service.models.ensemble import Probabilities
from service.offline import view_probabilities
from service.offline.evaluation import Photo
from service.offline.view_probabilities import ViewProbabilities
from service.scheduling.types import Batch

BOUNDS = Bounds(10**6)


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """A photo red on the left and blue on the right, a broken one, and a green one."""
    halves = Image.new("RGB", (256, 256), "red")
    halves.paste("blue", (128, 0, 256, 256))
    halves.save(tmp_path / "halves.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (8, 8), "green").save(tmp_path / "green.png")
    names = ("halves.png", "broken.png", "green.png")
    return [Photo(tmp_path / name, index) for index, name in enumerate(names)]


def measured(photos: list[Photo], sizes: Sequence[int], done: list[int]) -> ViewProbabilities:
    """Measure with a fake network whose batches have these sizes."""

    def run(batch: Batch[PreparedImage]) -> Sequence[Probabilities]:
        assert batch.size in sizes
        assert batch.rows <= batch.size
        return mean_colour(batch)

    ensemble = fake_backend(sizes=sizes).ensemble
    engine = Engine(ensemble, (DeviceExecutor(run),), AS_IT_IS)
    return view_probabilities.measure(engine, photos, BOUNDS, done.append)


@pytest.mark.parametrize("sizes", [(1, 2, 4, 8, 16), (1, 4), (1,)])
def test_every_view_of_every_readable_photo_is_computed(
    photos: list[Photo], sizes: Sequence[int]
) -> None:
    done: list[int] = []
    result = measured(photos, sizes, done)
    assert sum(done) == 3
    assert result.views.shape == (2, 10, 3)
    assert result.targets.tolist() == [0, 2]
    assert result.ends == (1, 2, 6, 10)
    centre, mirror = result.views[0, :2]
    assert centre == pytest.approx(mirror)
    assert centre == pytest.approx([0.5, 0, 0.5], abs=0.01)
    left = result.views[0, 2]  # the corners have more of their side
    assert left[0] > 0.55
    assert result.views[1] == pytest.approx(np.tile([0, 1, 0], (10, 1)))


def test_without_a_readable_photo_there_is_nothing_to_fit(photos: list[Photo]) -> None:
    with pytest.raises(ModelError, match="none of the photos can be read"):
        measured(photos[1:2], (1,), [])


def test_means_are_those_of_the_first_views_at_another_temperature() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 10, 5))
    views = np.array([calibration.softmax(image / 2) for image in logits], np.float32)
    means = ViewProbabilities(views, np.zeros(4, np.int64), (1, 2, 6, 10)).means(2, 0.5)
    wanted = np.array([calibration.softmax(image / 0.5) for image in logits])
    assert means.shape == (4, 4, 5)
    for stage, end in enumerate((1, 2, 6, 10)):
        assert means[:, stage] == pytest.approx(wanted[:, :end].mean(1), abs=1e-4)
