"""Which crops the network sees: counts, places, and pixels like those of the resized image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from service.imaging import crops
from service.imaging.crops import CROP, DENSE, NAMES, PAPER_SCALES, Canvas, Plan, Resize, View
from service.imaging.image_decoder import decode

WARP, SHORT = Resize("warp", 256), Resize("short", 256)
RESIZES = (WARP, SHORT, Resize("warp", 224), Resize("short", 300, "bicubic"))
SIZES = ((640, 427), (427, 640), (500, 500), (300, 224), (1000, 250))
PLANS = [crops.plan(name, resize) for name in NAMES for resize in RESIZES]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Pixels = npt.NDArray[np.uint8]


def image(width: int, height: int) -> Image.Image:
    """An image in which every place looks different: gradients with waves on them."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = np.sin(40 * x) * np.cos(30 * y)
    channels = np.stack([x, y, (waves + 1) / 2], axis=-1)
    return Image.fromarray((channels * 255).astype(np.uint8))


def resized(source: Image.Image, resize: Resize) -> Image.Image:
    """The whole image, resized: what the canvases are squares of."""
    if resize.rule == "warp":
        size = (resize.side, resize.side)
    else:
        short = min(source.size)
        size = tuple(resize.side * length // short for length in source.size)
    return source.resize(size, FILTERS[resize.interpolation])


def square(whole: Image.Image, canvas: Canvas) -> Pixels:
    left = round((whole.width - canvas.side) * canvas.across)
    top = round((whole.height - canvas.side) * canvas.down)
    return np.array(whole.crop((left, top, left + canvas.side, top + canvas.side)))


def cut(made: tuple[Pixels, ...], view: View) -> Pixels:
    down, across = slice(view.top, view.top + view.side), slice(view.left, view.left + view.side)
    pixels = made[view.canvas][down, across]
    return pixels[:, ::-1] if view.mirror else pixels


def seen(source: Image.Image, plan: Plan) -> list[Pixels]:
    """All that the network sees of an image, in order."""
    made = crops.canvases(source, plan)
    return [cut(made, view) for view in plan.views]


def difference(a: npt.ArrayLike, b: npt.ArrayLike) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def tolerance(resize: Resize) -> int:
    """Grey levels: each of Pillow's two passes rounds, and bicubic weights add up to over 1."""
    return 1 if resize.interpolation == "bilinear" else 2


# Arithmetic.


@pytest.mark.parametrize("resize", RESIZES)
def test_every_plan_has_its_number_of_views(resize: Resize) -> None:
    counts = {name: len(crops.plan(name, resize).views) for name in NAMES}
    fixed = {"single": 1, "ten": 10, "paper": 144, "dense": 2}
    assert counts == {**fixed, "adaptive": 10, "adaptive:paper": 144}
    with pytest.raises(KeyError):
        crops.plan("eleven", resize)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resize", RESIZES)
def test_without_mirrors_a_plan_is_the_rest_of_itself(name: str, resize: Resize) -> None:
    whole, rest = (crops.plan(name, resize, mirrors=mirrors) for mirrors in (True, False))
    assert rest.views == tuple(view for view in whole.views if not view.mirror)
    assert rest.canvases == whole.canvases
    fixed = {"single": 1, "ten": 5, "paper": 72, "dense": 1}
    counts = {**fixed, "adaptive": 5, "adaptive:paper": 72}
    assert len(rest.views) == counts[name]
    assert sum(map(len, rest.stages)) == counts[name]
    assert all(rest.stages)


@pytest.mark.parametrize("resize", RESIZES)
def test_adaptive_views_are_those_of_ten_with_the_centre_first(resize: Resize) -> None:
    """Before each stop, both halves of the image and both mirrors are seen equally often."""
    adaptive, ten = (crops.plan(name, resize) for name in ("adaptive", "ten"))
    assert adaptive.canvases == ten.canvases
    assert {*adaptive.views} == {*ten.views}
    assert [len(stage) for stage in adaptive.stages] == [1, 1, 4, 4]
    assert cut(crops.canvases(image(300, 260), adaptive), adaptive.views[0]).tolist() == (
        cut(crops.canvases(image(300, 260), ten), ten.views[4]).tolist()
    )
    for stop in (2, 6, 10):
        seen = adaptive.views[:stop]
        assert sum(view.mirror for view in seen) == stop // 2


@pytest.mark.parametrize("resize", RESIZES)
def test_adaptive_views_of_paper_are_spread_before_each_stop(resize: Resize) -> None:
    """Both mirrors, and all sizes, are seen about equally often."""
    adaptive, paper = (crops.plan(name, resize) for name in ("adaptive:paper", "paper"))
    assert adaptive.canvases == paper.canvases
    assert {*adaptive.views} == {*paper.views}
    for stop in adaptive.stops:
        seen = adaptive.views[:stop]
        assert abs(sum(view.mirror for view in seen) - stop / 2) <= 1
        sides = [paper.canvases[view.canvas % len(paper.canvases)].side for view in seen]
        counts = [sides.count(scale) for scale in PAPER_SCALES]
        assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_has_only_canvases_with_views_which_lie_inside(plan: Plan) -> None:
    sides = [canvas.side for canvas in plan.canvases] + [CROP for _ in plan.shrunk]
    assert {view.canvas for view in plan.views} == set(range(len(sides)))
    assert {view.side for view in plan.views} == {plan.side}
    for view in plan.views:
        assert 0 <= view.top <= sides[view.canvas] - view.side
        assert 0 <= view.left <= sides[view.canvas] - view.side
    made = crops.canvases(image(300, 260), plan)
    assert sum(canvas.nbytes for canvas in made) == plan.nbytes


@pytest.mark.parametrize("name", ["ten", "paper", "dense"])
@pytest.mark.parametrize("resize", RESIZES)
def test_the_last_half_is_the_first_half_mirrored(name: str, resize: Resize) -> None:
    views = crops.plan(name, resize).views
    half = len(views) // 2
    assert not any(view.mirror for view in views[:half])
    assert views[half:] == tuple(replace(view, mirror=True) for view in views[:half])


@settings(max_examples=300)
@given(st.sampled_from(PLANS), st.integers(1, 1_000_000), st.integers(1, 1_000_000))
def test_every_canvas_is_cut_from_inside_the_image(plan: Plan, width: int, height: int) -> None:
    for canvas in plan.canvases:
        left, top, right, bottom = canvas.box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@given(st.integers(224, 5000), st.integers(224, 5000))
def test_by_short_side_a_canvas_is_a_square_of_the_image(width: int, height: int) -> None:
    """To within what rounding the resized size down can do."""
    left, top, right, bottom = Canvas(SHORT, CROP).box(width, height)
    assert (right - left) / (bottom - top) == pytest.approx(1, abs=1 / 224)


# Pixels.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("plan", PLANS)
def test_canvases_are_squares_of_the_whole_resized_image(plan: Plan, size: tuple[int, int]) -> None:
    source = image(*size)
    made = crops.canvases(source, plan)
    for canvas, pixels in zip(plan.canvases, made, strict=False):
        whole = resized(source, canvas.resize)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (canvas.side, canvas.side, 3)
        assert difference(pixels, square(whole, canvas)) <= tolerance(canvas.resize)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", RESIZES)
def test_single_is_the_centre(resize: Resize, size: tuple[int, int]) -> None:
    source = image(*size)
    (only,) = seen(source, crops.plan("single", resize))
    centre = functional.center_crop(resized(source, resize), [CROP, CROP])
    assert difference(only, centre) <= tolerance(resize)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", RESIZES)
def test_ten_are_torchvisions_five_and_their_mirrors(resize: Resize, size: tuple[int, int]) -> None:
    source = image(*size)
    five = functional.five_crop(resized(source, resize), [CROP, CROP])
    reference = [*five, *map(functional.hflip, five)]
    for ours, theirs in zip(seen(source, crops.plan("ten", resize)), reference, strict=True):
        assert difference(ours, theirs) <= tolerance(resize)


def test_ten_by_short_side_reach_the_ends_of_a_long_image() -> None:
    source = Image.new("RGB", (1000, 200), "white")
    source.paste((255, 0, 0), (0, 0, 100, 200))
    source.paste((0, 0, 255), (900, 0, 1000, 200))
    top_left, top_right, *_ = seen(source, crops.plan("ten", SHORT))
    assert top_left[0, 0].tolist() == [255, 0, 0]
    assert top_right[0, -1].tolist() == [0, 0, 255]


def test_dense_is_the_centre_square_and_its_mirror() -> None:
    source = image(640, 427)
    plan = crops.plan("dense", WARP)
    straight, mirrored = seen(source, plan)
    whole = resized(source, Resize("short", DENSE))
    assert plan.side == DENSE
    assert difference(straight, functional.center_crop(whole, [DENSE, DENSE])) <= 1
    assert difference(straight[:, ::-1], mirrored) == 0


# The paper's 144.


def test_paper_is_four_scales_three_squares_six_views_and_mirrors() -> None:
    plan = crops.plan("paper", WARP)
    assert [canvas.side for canvas in plan.canvases] == [s for s in PAPER_SCALES for _ in range(3)]
    assert PAPER_SCALES == (256, 288, 320, 352)
    for number in range(12):
        mine = [view for view in plan.views if view.canvas == number]
        shrunk = [view for view in plan.views if view.canvas == 12 + number]
        assert (len(mine), len(shrunk)) == (5 * 2, 1 * 2)


@pytest.mark.parametrize("resize", RESIZES)
def test_paper_goes_by_short_side_whatever_the_model_says(resize: Resize) -> None:
    for canvas in crops.plan("paper", resize).canvases:
        assert canvas.resize == Resize("short", canvas.side, resize.interpolation)


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((1000, 500), [(0, 0, 500, 500), (250, 0, 750, 500), (500, 0, 1000, 500)]),
        ((500, 1000), [(0, 0, 500, 500), (0, 250, 500, 750), (0, 500, 500, 1000)]),
        ((500, 500), [(0, 0, 500, 500)] * 3),
    ],
)
def test_paper_takes_both_ends_and_the_centre_of_an_image(
    size: tuple[int, int], boxes: list[tuple[int, ...]]
) -> None:
    squares = crops.plan("paper", WARP).canvases[:3]
    assert [canvas.box(*size) for canvas in squares] == boxes


@pytest.mark.parametrize("size", SIZES[:3])
def test_paper_sees_each_squares_five_crops_and_the_square_made_small(
    size: tuple[int, int],
) -> None:
    source = image(*size)
    plan = crops.plan("paper", WARP)
    all_ = seen(source, plan)
    for number, canvas in enumerate(plan.canvases):
        whole = Image.fromarray(square(resized(source, canvas.resize), canvas))
        small = whole.resize((CROP, CROP), Image.Resampling.BILINEAR)
        reference = [*functional.five_crop(whole, [CROP, CROP]), small]
        ours = all_[6 * number : 6 * number + 6]
        mirrored = all_[72 + 6 * number : 72 + 6 * number + 6]
        for mine, mirror, theirs in zip(ours, mirrored, reference, strict=True):
            assert difference(mine, theirs) <= 1
            assert difference(mine[:, ::-1], mirror) == 0


# How many pixels are enough.


@pytest.mark.parametrize(
    ("name", "min_side"), [("single", 512), ("ten", 512), ("dense", 576), ("paper", 704)]
)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_twice_the_resized_images_side_is_enough(name: str, min_side: int, resize: Resize) -> None:
    assert crops.plan(name, resize).min_side == min_side


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_a_jpeg_decoded_small_has_nearly_the_same_views(
    name: str, resize: Resize, shared: Path
) -> None:
    """On the largest photo there is, 1600x1200; it is decoded at half of that."""
    data = (shared / "photos/n03337140_file.JPEG").read_bytes()
    plan = crops.plan(name, resize)
    all_, less = (decode(data, max_pixels=10**8, min_side=n) for n in (None, plan.min_side))
    assert (all_.size, less.size) == ((1600, 1200), (1600, 1200) if "paper" in name else (800, 600))
    for whole, small in zip(crops.canvases(all_, plan), crops.canvases(less, plan), strict=True):
        assert np.abs(whole.astype(np.int16) - small).mean() < 0.5
        assert difference(whole, small) <= 8


# Extreme shapes.


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (20_000, 3)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_the_thinnest_images_have_canvases_like_any_other(
    name: str, resize: Resize, size: tuple[int, int]
) -> None:
    check_shapes(Image.new("RGB", size, (10, 20, 30)), crops.plan(name, resize))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(PLANS), st.integers(1, 5000), st.integers(1, 5000))
def test_any_size_gives_canvases_of_the_plans_sizes(plan: Plan, width: int, height: int) -> None:
    check_shapes(Image.new("RGB", (width, height), (10, 20, 30)), plan)


def check_shapes(source: Image.Image, plan: Plan) -> None:
    """One colour stays that colour, in arrays of the plan's sizes."""
    made = crops.canvases(source, plan)
    sides = [canvas.side for canvas in plan.canvases] + [CROP for _ in plan.shrunk]
    assert [pixels.shape for pixels in made] == [(side, side, 3) for side in sides]
    for pixels in made:
        assert (pixels == (10, 20, 30)).all()


def test_canvases_are_writable_copies() -> None:
    """Arrays that are writable, as torch wants them, and not the image's memory."""
    source = Image.new("RGB", (CROP, CROP))
    (canvas,) = crops.canvases(source, crops.plan("single", Resize("warp", CROP)))
    canvas[:] = 255
    assert source.getpixel((0, 0)) == (0, 0, 0)
