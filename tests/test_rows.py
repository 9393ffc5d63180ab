"""A batch's rows: exactly the views of its slices, whichever way they are cut, and their sums."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import needs_gpu
from PIL import Image
from torch import Tensor

from service import rows, views
from service.costs import Key
from service.cuts import Cuts
from service.views import CROP, DENSE, Resize
from service.work import Batch, Slice

CPU = torch.device("cpu")
WARP, SHORT = Resize("warp", 256), Resize("short", 256)


def noise(seed: int, width: int = 300, height: int = 260) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def cuts(picture: Image.Image, name: str, resize: Resize = WARP) -> Cuts:
    plan = views.plan(name, resize)
    return Cuts(plan, views.canvases(picture, plan))


def whole(payload: Cuts) -> Slice[Cuts]:
    return Slice(payload, 0, len(payload.plan.views))


def batch(*slices: Slice[Cuts], size: int = 0, member: int = 0) -> Batch[Cuts]:
    rows = sum(part.rows for part in slices)
    key = Key(member, slices[0].payload.plan.side)
    return Batch(key, size or rows, slices, "full")


def expected_views(part: Slice[Cuts]) -> list[npt.NDArray[np.uint8]]:
    """A slice's views, cut with numpy."""
    made = []
    for view in part.payload.plan.views[part.start : part.stop]:
        canvas = part.payload.canvases[view.canvas]
        square = canvas[view.top : view.top + view.side, view.left : view.left + view.side]
        made.append(square[:, ::-1] if view.mirror else square)
    return made


# Cutting.


@pytest.fixture(params=[rows.slices, partial(rows.gathered, device=CPU)], ids=["CPU", "GPU"])
def cut(request: pytest.FixtureRequest) -> Callable[[Batch[Cuts]], Tensor]:
    """Each way to cut; that of GPUs does the same anywhere."""
    way: Callable[[Batch[Cuts]], Tensor] = request.param
    return way


@pytest.mark.parametrize("name", views.NAMES)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_cut_gives_exactly_the_plans_views(
    name: str, resize: Resize, cut: Callable[[Batch[Cuts]], Tensor]
) -> None:
    part = whole(cuts(noise(0), name, resize))
    made = cut(batch(part))
    assert made.dtype == torch.uint8
    assert np.array_equal(made.numpy(), np.stack(expected_views(part)))


def test_cut_puts_slices_one_after_the_other_and_pads_with_zeros(
    cut: Callable[[Batch[Cuts]], Tensor],
) -> None:
    one, two = cuts(noise(1), "ten"), cuts(noise(2), "single")
    slices = [Slice(one, 3, 8), whole(two), Slice(one, 9, 10)]
    made = cut(batch(*slices, size=16)).numpy()
    views_ = [view for part in slices for view in expected_views(part)]
    assert made.shape == (16, CROP, CROP, 3)
    assert np.array_equal(made[:7], np.stack(views_))
    assert not made[7:].any()


def test_cut_uses_the_side_of_its_key(cut: Callable[[Batch[Cuts]], Tensor]) -> None:
    made = cut(batch(whole(cuts(noise(3), "dense"))))
    assert made.shape == (2, DENSE, DENSE, 3)
    assert torch.equal(made[0].flip(1), made[1])


def test_144_views_split_at_odd_places_are_the_144_views(
    cut: Callable[[Batch[Cuts]], Tensor],
) -> None:
    payload = cuts(noise(4, 320, 256), "paper")
    places = [0, 1, 7, 72, 73, 101, 144]
    pieces = [cut(batch(Slice(payload, start, stop))) for start, stop in pairwise(places)]
    assert torch.equal(torch.cat(pieces), cut(batch(whole(payload))))


def test_views_of_pixels_and_views_that_came_as_floats_share_a_batch(
    cut: Callable[[Batch[Cuts]], Tensor],
) -> None:
    pixels = cuts(noise(8), "ten")
    view = np.random.default_rng(9).normal(100, 90, (CROP, CROP, 3)).astype(np.float32)
    floats = Cuts(views.plan("single", WARP), (view,))
    made = cut(batch(Slice(pixels, 1, 3), whole(floats), Slice(pixels, 9, 10), size=8)).numpy()
    assert made.dtype == np.float32
    assert np.array_equal(made[2], view)
    assert np.array_equal(made[[0, 1, 3]], np.stack(expected_views(whole(pixels)))[[1, 2, 9]])
    assert not made[4:].any()


@needs_gpu
def test_a_gpu_cuts_what_a_cpu_does() -> None:
    asked = batch(whole(cuts(noise(6), "paper")), whole(cuts(noise(7), "single")), size=160)
    on_gpu = rows.cut(asked, torch.device("cuda", 0))
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.cpu(), rows.cut(asked, CPU))


# Summing up.


def test_each_slice_has_the_sum_of_its_own_rows_and_padding_is_nobodys() -> None:
    payload = cuts(noise(5), "ten")
    given = np.arange(12, dtype=np.float32).reshape(6, 2)
    parts = [Slice(payload, 0, 1), Slice(payload, 4, 7)]
    one, three = rows.sums(given, parts)
    assert one.tolist() == [0, 1]
    assert three.tolist() == [2 + 4 + 6, 3 + 5 + 7]


def test_many_rows_are_summed_up_exactly() -> None:
    """In float32 adding a small probability to a large sum would round it away."""
    given = np.full((4096, 1), 1e-8, np.float32)
    given[0] = 1
    (summed,) = rows.sums(given, [Slice(cuts(noise(5), "ten"), 0, 4096)])
    assert summed == pytest.approx([1 + 4095e-8], abs=1e-9)
