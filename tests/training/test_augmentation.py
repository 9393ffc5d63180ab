"""Patches."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.training.augmentation import ASPECTS, augment, patch

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(0, 10**6), st.floats(0.01, 1))
def test_a_patch_is_within_its_image_and_as_large_as_it_should_be(
    width: int, height: int, seed: int, smallest: float
) -> None:
    left, top, right, bottom = patch(width, height, Random(seed), smallest)
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    aspect = (right - left) / (bottom - top)
    assert ASPECTS[0] - 1e-6 <= aspect <= ASPECTS[1] + 1e-6
    if ASPECTS[0] <= width / height <= ASPECTS[1]:
        share = (right - left) * (bottom - top) / (width * height)
        assert share >= min(smallest, ASPECTS[0]) - 1e-6


def test_patches_have_all_sizes_that_the_paper_names() -> None:
    chance = Random(0)
    boxes = [patch(400, 300, chance, 0.08) for _ in range(2000)]
    shares = [(right - left) * (bottom - top) / 120_000 for left, top, right, bottom in boxes]
    assert min(shares) == pytest.approx(0.08, abs=0.01)
    assert max(shares) > 0.95
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_a_patch_that_does_not_fit_is_the_middle() -> None:
    assert patch(1000, 10, Random(0), 1.0) == pytest.approx(
        (1000 / 2 - 20 / 3, 0, 1000 / 2 + 20 / 3, 10)
    )


def gradient() -> Image.Image:
    """Darker at the left."""
    return Image.fromarray(np.tile(np.arange(250, dtype=np.uint8)[:, None], (250, 1, 3)))


def drawn(seed: int, **options: object) -> np.ndarray:
    chosen = {"smallest": 0.5, "distortion": 0.0, "mirror": False, **options}
    return augment(gradient(), Random(seed), **chosen)  # type: ignore[arg-type]


def test_a_patch_has_the_networks_size_and_depends_on_the_seed_alone() -> None:
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert (first.shape, first.dtype) == ((224, 224, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_other_is_mirrored_if_it_may_be() -> None:
    def rises(pixels: np.ndarray) -> bool:
        return bool(pixels[:, -10:].mean() > pixels[:, :10].mean())

    assert all(rises(drawn(seed)) for seed in range(20))
    often = sum(rises(drawn(seed, mirror=True)) for seed in range(60))
    assert 18 <= often <= 42


def test_colours_are_distorted_by_at_most_the_chosen_share() -> None:
    plain = [drawn(seed).mean() for seed in range(40)]
    bright = [drawn(seed, distortion=0.4).mean() for seed in range(40)]
    assert 1.2 < max(b / p for b, p in zip(bright, plain, strict=True)) <= 1.42
    assert 0.58 <= min(b / p for b, p in zip(bright, plain, strict=True)) < 0.8
