"""Views cut on the device and turned into probabilities, on a network small enough to reckon."""

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from service import forward, runtime
from service.errors import ModelError
from service.forward import Forward
from service.manifest import Label
from service.packed import Shape
from service.store import Store
from service.views import CROP, Resize
from service.weights import Model

CPU = torch.device("cpu")
WARP, SHORT = Resize("warp", 256), Resize("short", 256)


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

    explains = False

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


class Old(nn.Conv2d):
    """A convolution on a device that has no instructions for bfloat16."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3, H, W)
        if x.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return super().forward(x)


class OnOld(Toy):
    """A model of it."""

    def network(self) -> nn.Module:
        """Build it."""
        return nn.Sequential(Old(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_number_format_that_the_device_has_not_is_passed_over() -> None:
    both = [torch.float32, torch.bfloat16]
    assert forward.quickest([toy(OnOld)], CPU, both) == torch.float32


def test_a_number_format_that_is_asked_for_and_that_the_device_has_not_is_refused() -> None:
    with pytest.raises(ModelError, match="this device does not compute in bfloat16"):
        forward.quickest([toy(OnOld)], CPU, [torch.bfloat16])


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
