"""Prepared images: decoding, canvases and tensors."""

import io
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.engine import prepared_image
from service.engine.torch_network import Normalise
from service.errors import InvalidParameter, TooLarge
from service.imaging import crops
from service.imaging.crops import CROP, Resize
from service.imaging.image_decoder import Bounds
from service.models.manifest import Preprocessing

WARP, SHORT = (crops.plan("single", Resize(rule, 256)) for rule in ("warp", "short"))


def image() -> bytes:
    """A noise image that is not square, so that the resize rule matters."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def test_equal_plans_share_canvases() -> None:
    one, other, same = prepared_image.prepare(image(), [WARP, SHORT, WARP], Bounds(10**8))
    assert one is same
    assert [each.plan for each in (one, other)] == [WARP, SHORT]
    assert not np.array_equal(one.canvases[0], other.canvases[0])


def test_a_large_photo_is_decoded_in_reduced_size_if_its_views_stay_the_same() -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(file, "JPEG")
    paper = crops.plan("paper", Resize("warp", 256))
    [reduced] = prepared_image.prepare(file.getvalue(), [WARP], Bounds(10**8))
    [expected] = crops.canvases(Image.open(file), WARP)
    assert np.abs(reduced.canvases[0].astype(np.int16) - expected).mean() < 0.5
    [whole, _] = prepared_image.prepare(file.getvalue(), [paper, WARP], Bounds(10**8))
    exactly = crops.canvases(Image.open(file), paper)
    assert all(np.array_equal(*pair) for pair in zip(whole.canvases, exactly, strict=True))


def test_canvases_by_plan() -> None:
    upright = Image.open(io.BytesIO(image()))
    for prepared in prepared_image.prepare(image(), [SHORT, WARP], Bounds(10**8)):
        (expected,) = crops.canvases(upright, prepared.plan)
        assert np.array_equal(prepared.canvases[0], expected)


def test_decoded_array_equals_its_file() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(image())))
    for plan in (WARP, SHORT, crops.plan("ten", Resize("short", 256))):
        (expected,) = prepared_image.prepare(image(), [plan], Bounds(10**8))
        (made,) = prepared_image.prepare(pixels, [plan], Bounds(10**8))
        assert all(map(np.array_equal, made.canvases, expected.canvases))


def test_max_pixels_applies_to_arrays() -> None:
    with pytest.raises(TooLarge, match="20x10 is over 199 pixels"):
        prepared_image.prepare(np.zeros((10, 20, 3), np.uint8), [WARP], Bounds(199))


channel = st.floats(0, 255, width=32)
factor = st.floats(0.0625, 8, width=32)


@settings(deadline=None, derandomize=True)
@given(
    channels=st.sampled_from(["RGB", "BGR"]),
    mean=st.tuples(channel, channel, channel),
    scale=st.tuples(factor, factor, factor),
    seed=st.integers(0, 99),
)
def test_unscaled_tensor_round_trip(
    channels: Literal["RGB", "BGR"],
    mean: tuple[float, float, float],
    scale: tuple[float, float, float],
    seed: int,
) -> None:
    described = Preprocessing(channels=channels, mean=mean, scale=scale, resize="warp", side=256)
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 8, 8, 3), np.uint8)
    scaled = Normalise(described, torch.float32)
    tensor = scaled(torch.from_numpy(pixels))
    back = prepared_image.unscaled(tensor[0].numpy(), described)
    assert np.abs(back - pixels[0]).max() < 1e-3
    assert torch.allclose(scaled(torch.from_numpy(back)[None]), tensor, atol=1e-3)


@pytest.mark.parametrize("name", ["ten", "dense"])
def test_tensor_needs_a_plan_of_one_view(name: str) -> None:
    plan = crops.plan(name, Resize("warp", 256))
    with pytest.raises(InvalidParameter, match="one view of an image"):
        prepared_image.given(np.zeros((CROP, CROP, 3), np.float32), [WARP, plan])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e38, 1001])
def test_tensor_out_of_range_is_refused(value: float) -> None:
    view = np.zeros((CROP, CROP, 3), np.float32)
    assert [made.canvases[0] is view for made in prepared_image.given(view, [WARP, SHORT])] == [
        True,
        True,
    ]
    view[5, 6, 1] = value
    with pytest.raises(InvalidParameter, match="values beyond 1000"):
        prepared_image.given(view, [WARP])
