"""Views cut on the device and turned into probabilities, on a network small enough to reckon."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import Tensor, nn

from service import forward, runtime, views
from service.cuts import Cuts
from service.errors import ModelError
from service.forward import Forward
from service.manifest import Label
from service.packed import Shape
from service.policy import Key
from service.store import Store
from service.views import CROP, DENSE, Resize
from service.weights import Model
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


@pytest.mark.parametrize("name", views.NAMES)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_cut_gives_exactly_the_plans_views(name: str, resize: Resize) -> None:
    part = whole(cuts(noise(0), name, resize))
    rows = forward.cut(batch(part), CPU)
    assert rows.dtype == torch.uint8
    assert np.array_equal(rows.numpy(), np.stack(expected_views(part)))


def test_cut_puts_slices_one_after_the_other_and_pads_with_zeros() -> None:
    one, two = cuts(noise(1), "ten"), cuts(noise(2), "single")
    slices = [Slice(one, 3, 8), whole(two), Slice(one, 9, 10)]
    rows = forward.cut(batch(*slices, size=16), CPU).numpy()
    views_ = [view for part in slices for view in expected_views(part)]
    assert rows.shape == (16, CROP, CROP, 3)
    assert np.array_equal(rows[:7], np.stack(views_))
    assert not rows[7:].any()


def test_cut_uses_the_side_of_its_key() -> None:
    rows = forward.cut(batch(whole(cuts(noise(3), "dense"))), CPU)
    assert rows.shape == (2, DENSE, DENSE, 3)
    assert torch.equal(rows[0].flip(1), rows[1])


def test_144_views_split_at_odd_places_are_the_144_views() -> None:
    payload = cuts(noise(4, 320, 256), "paper")
    places = [0, 1, 7, 72, 73, 101, 144]
    pieces = [
        forward.cut(batch(Slice(payload, start, stop)), CPU) for start, stop in pairwise(places)
    ]
    assert torch.equal(torch.cat(pieces), forward.cut(batch(whole(payload)), CPU))


# Summing up.


def test_each_slice_has_the_sum_of_its_own_rows_and_padding_is_nobodys() -> None:
    payload = cuts(noise(5), "ten")
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    parts = [Slice(payload, 0, 1), Slice(payload, 4, 7)]
    one, three = forward.sums(rows, parts)
    assert one.tolist() == [0, 1]
    assert three.tolist() == [2 + 4 + 6, 3 + 5 + 7]


def test_many_rows_are_summed_up_exactly() -> None:
    """In float32 adding a small probability to a large sum would round it away."""
    rows = np.full((4096, 1), 1e-8, np.float32)
    rows[0] = 1
    (summed,) = forward.sums(rows, [Slice(cuts(noise(5), "ten"), 0, 4096)])
    assert summed == pytest.approx([1 + 4095e-8], abs=1e-9)


# A network small enough to reckon: how dark a view's colours are, as probabilities.


class Colours(nn.Module):
    """Logits are what the preprocessing made of a view, averaged by channel, times `sharpness`."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3)
        return x.mean((2, 3)) * self.sharpness


class Toy(Model):
    """A model of the store, but for its network."""

    def network(self) -> nn.Module:
        """Build the toy with its one weight."""
        return Colours(float(self.state["sharpness"]))


@cache
def toy(kind: type[Model] = Toy) -> Model:
    """Make a toy with the preprocessing of the BVLC weights: BGR, minus a mean."""
    described = Store(ROOT, ROOT / "model_store").manifest("bvlc_googlenet")
    labels = tuple(Label(name=name, wnid=None) for name in ("blue", "green", "red"))
    return kind("toy", described, labels, "0" * 64, {"sharpness": torch.tensor(0.1)})


def preprocessed(model: Model, **changes: object) -> Model:
    """Give a toy with other preprocessing."""
    changed = model.manifest.preprocessing.model_copy(update=changes)
    return replace(model, manifest=model.manifest.model_copy(update={"preprocessing": changed}))


def softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum()


def probabilities(model: Model, colour: tuple[int, int, int]) -> list[float]:
    """Run two rows, of which the first is in one colour."""
    pixels = torch.zeros((2, CROP, CROP, 3), dtype=torch.uint8)
    pixels[0] = torch.tensor(colour, dtype=torch.uint8)
    with torch.inference_mode():
        rows = Forward(model, CPU, torch.float32, [Shape(2, CROP)])(pixels)
    assert (rows.dtype, tuple(rows.shape)) == (torch.float32, (2, 3))
    first: list[float] = rows[0].tolist()
    return first


def test_channels_are_swapped_before_the_mean_is_subtracted() -> None:
    bgr = np.array([90 - 104, 125 - 117, 130 - 123])
    assert probabilities(toy(), (130, 125, 90)) == pytest.approx(softmax(0.1 * bgr), abs=1e-6)


def test_an_rgb_model_with_a_scale_is_fed_in_order_and_scaled() -> None:
    mean, scale = (100.0, 110.0, 120.0), (0.5, 1.0, 2.0)
    model = preprocessed(toy(), channels="RGB", mean=mean, scale=scale)
    expected = softmax([0.1 * 4 * 0.5, 0.1 * 3, 0.1 * -1 * 2])
    assert probabilities(model, (104, 113, 119)) == pytest.approx(expected, abs=1e-6)


# The number format that chooses itself.


class Fragile(Colours):
    """A network that only float32 is good enough for."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - as above
        return super().forward(x) + 100 * (x.dtype != torch.float32) * torch.tensor([1, 0, 0])


class Delicate(Toy):
    """Its model."""

    def network(self) -> nn.Module:
        """Build it."""
        return Fragile(float(self.state["sharpness"]))


ALL = tuple(runtime.PRECISIONS.values())


def test_only_a_number_format_that_agrees_with_float32_is_chosen() -> None:
    assert forward.quickest([toy(Delicate)], CPU, ALL) == torch.float32
    assert forward.quickest([toy()], CPU, ALL) in ALL


def test_one_member_that_disagrees_decides_for_all() -> None:
    assert forward.quickest([toy(), toy(Delicate)], CPU, ALL) == torch.float32


def test_a_number_format_that_is_asked_for_is_taken_as_it_is() -> None:
    assert forward.quickest([toy(Delicate)], CPU, [torch.bfloat16]) == torch.bfloat16


def test_int8_is_for_models_that_were_calibrated() -> None:
    assert toy().largest is None
    with pytest.raises(ModelError, match="calibrated"):
        forward.quickest([toy()], CPU, [torch.int8])


def test_int8_is_for_devices_that_networks_are_rewritten_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    calibrated = replace(toy(), largest={"": 1.0})
    with pytest.raises(ModelError, match="int8 needs a CPU"):
        forward.quickest([calibrated], CPU, [torch.int8])
    assert forward.quickest([calibrated], CPU, [torch.int8, torch.float32]) == torch.float32
