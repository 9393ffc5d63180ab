"""The rewritten network answers as the network it was made from."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service import images, views, weights
from service.errors import ModelError
from service.forward import Forward
from service.networks import ARCHITECTURES
from service.networks.googlenet import GoogLeNet, LocalResponseNorm
from service.operators import (
    ByteConv,
    BytePool,
    MaxPool,
    Norm,
    PackedConv,
    ToBytes,
    ToFloats,
)
from service.packed import Shape, calibrate, pack
from service.store import Store

SHAPES = [Shape(1, 224), Shape(3, 224), Shape(2, 288)]
CPU = torch.device("cpu")


def pixels(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((shape.rows, 3, shape.side, shape.side), generator=generator) * 50
    return noise.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def googlenet() -> nn.Module:
    torch.manual_seed(0)
    return GoogLeNet(10, auxiliary=False).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_same_to_the_last_few_bits(googlenet: nn.Module, shape: Shape) -> None:
    packed = pack(googlenet, torch.float32, SHAPES)
    with torch.inference_mode():
        expected = googlenet(pixels(shape))
        torch.testing.assert_close(packed(pixels(shape)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_batch_norm_is_folded_without_a_trace(shape: Shape) -> None:
    torch.manual_seed(0)
    network = ARCHITECTURES["torchvision_googlenet"].build(10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    with torch.inference_mode():
        expected = network(pixels(shape) / 50)
        packed = pack(network, torch.float32, SHAPES)
        torch.testing.assert_close(packed(pixels(shape) / 50), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in packed.modules())


def test_a_shape_that_it_was_not_packed_for_is_refused(googlenet: nn.Module) -> None:
    with pytest.raises(KeyError):
        pack(googlenet, torch.float32, SHAPES)(pixels(Shape(5, 224)))


def test_bfloat16_agrees_on_what_is_on_the_photos(real_store: Store, shared: Path) -> None:
    model = weights.load(real_store, "bvlc_googlenet")
    plan = views.plan("single", model.manifest.preprocessing.resized)
    photos = sorted((shared / "photos/flickr").glob("*.jpg"))
    pictures = [images.decode(photo.read_bytes(), max_pixels=10**8) for photo in photos]
    rows = torch.stack([torch.from_numpy(views.canvases(p, plan)[0]) for p in pictures])
    shapes = [Shape(len(rows), 224)]
    with torch.inference_mode():
        exact = Forward(model, CPU, torch.float32, shapes)(rows)
        half = Forward(model, CPU, torch.bfloat16, shapes)(rows)
    assert (exact.argmax(1) == half.argmax(1)).all()
    assert (exact - half).abs().max() < 0.05


class Mixed(nn.Module):
    """Convolutions whose results are used in ways that a ReLU may not be merged into."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Conv2d(3, 4, 1, bias=False)
        self.shared = nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d((2, 2), (2, 2))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        alone, both = self.alone(x), self.shared(x)
        pooled = self.pool(alone) + self.pool(both.abs()) + self.pool(torch.relu(both))
        return pooled.mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_a_relu_that_is_alone_is_merged(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Mixed().eval().to(dtype)
    x = pixels(Shape(2, 6)).to(dtype)
    with torch.inference_mode():
        expected = network(x)
        packed = pack(network, dtype, [Shape(2, 6)])
        torch.testing.assert_close(packed(x), expected, rtol=1e-2, atol=1e-1)
    (graph,) = packed.graphs.values()
    convs = [module for module in graph.modules() if isinstance(module, PackedConv)]
    assert [conv.positive for conv in convs] == [False, False]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    high=st.integers(1, 12),
    wide=st.integers(1, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    ceil=st.booleans(),
    positive=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_max_pooling_is_pytorchs(  # noqa: PLR0913 - all that a pool can be told
    *,
    high: int,
    wide: int,
    kernel: int,
    stride: int,
    padding: int,
    ceil: bool,
    positive: bool,
    dtype: torch.dtype,
) -> None:
    padding = min(padding, kernel // 2)
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    assume(MaxPool.takes(pool))
    assume(min(high, wide) + 2 * padding >= kernel)
    generator = torch.Generator().manual_seed(high * 13 + wide)
    x = torch.randn((2, 3, high, wide), generator=generator).to(dtype)
    x = (x.abs() if positive else x).contiguous(memory_format=torch.channels_last)
    assert torch.equal(MaxPool(pool, positive=positive)(x), pool(x))


def test_the_pools_of_known_networks_are_taken() -> None:
    assert MaxPool.takes(nn.MaxPool2d(3, 2, ceil_mode=True))
    assert MaxPool.takes(nn.MaxPool2d(3, 1, 1))
    assert MaxPool.takes(nn.MaxPool2d(3, 2, 1))
    assert not MaxPool.takes(nn.MaxPool2d(2, 2, 1))
    assert not MaxPool.takes(nn.MaxPool2d(3, 2, 1, ceil_mode=True))


# In bytes.


class Branches(nn.Module):
    """What a rewriting into bytes has to get right: branches, pools, and values used as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = LocalResponseNorm(16)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.left = nn.Conv2d(16, 16, 1)
        self.right = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.inner = nn.MaxPool2d(3, stride=1, padding=1)
        self.signed = nn.Conv2d(40, 16, 1)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        x = self.pool(self.norm(torch.relu(self.first(x))))
        both = torch.cat((torch.relu(self.left(x)), torch.relu(self.right(self.inner(x)))), 1)
        signed = self.signed(both)  # may be below zero, so what follows is in floats
        return self.last(signed).mean((2, 3)) + both[:, :8].mean((2, 3))


@pytest.fixture(scope="module")
def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def calibrated(network: nn.Module, *batches: Tensor) -> dict[str, float]:
    return calibrate(network, [batch / 50 for batch in batches])


def test_in_bytes_a_network_answers_nearly_as_in_floats(branches: nn.Module) -> None:
    shape = Shape(2, 15)
    x = pixels(shape) / 50
    with torch.inference_mode():
        expected = branches(x)
        packed = pack(branches, torch.int8, [shape], calibrated(branches, pixels(shape)))
        result = packed(x.bfloat16()).float()
    spread = float(expected.max() - expected.min())
    assert float((result - expected).abs().max()) < 0.05 * spread


def test_only_convolutions_of_what_is_never_below_zero_are_in_bytes(branches: nn.Module) -> None:
    shape = Shape(2, 15)
    packed = pack(branches, torch.int8, [shape], calibrated(branches, pixels(shape)))
    (graph,) = packed.graphs.values()
    kinds = {
        kind: sum(isinstance(module, kind) for module in graph.modules())
        for kind in (ByteConv, BytePool, Norm, ToBytes, ToFloats)
    }
    # left, right and signed; both pools; the norm gives bytes itself; `both` is used as floats.
    assert kinds == {ByteConv: 3, BytePool: 2, Norm: 1, ToBytes: 0, ToFloats: 1}


class Residual(nn.Module):
    """Two convolutions of which the second is added to what the first was given, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        x = self.relu(self.stem(x))
        out = self.second(self.relu(self.first(x)))
        out += x
        return self.relu(out).mean((2, 3))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def test_a_relu_that_is_a_module_is_merged_and_gives_bytes_too() -> None:
    torch.manual_seed(0)
    network, shape = Residual().eval(), Shape(2, 15)
    x = pixels(shape) / 50
    with torch.inference_mode():
        expected = network(x)
        exact = pack(network, torch.float32, [shape])
        torch.testing.assert_close(exact(x), expected, rtol=1e-4, atol=1e-4)
        packed = pack(network, torch.int8, [shape], calibrated(network, pixels(shape)))
        result = packed(x.bfloat16()).float()
    spread = float(expected.max() - expected.min())
    assert float((result - expected).abs().max()) < 0.05 * spread
    (graph,) = exact.graphs.values()
    convs = [module for module in graph.modules() if isinstance(module, PackedConv)]
    assert [conv.positive for conv in convs] == [True, True, False]
    (graph,) = packed.graphs.values()
    assert sum(isinstance(module, ByteConv) for module in graph.modules()) == 2


def test_floats_become_bytes_where_no_operator_gives_them() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x))).mean((2, 3))

    network, shape = Plain().eval(), Shape(1, 9)
    packed = pack(network, torch.int8, [shape], calibrated(network, pixels(shape)))
    (graph,) = packed.graphs.values()
    assert sum(isinstance(module, ToBytes) for module in graph.modules()) == 1
    with torch.inference_mode():
        expected = network(pixels(shape) / 50)
        result = packed((pixels(shape) / 50).bfloat16()).float()
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("largest", [None, {}, {"first": 1.0}])
def test_without_calibration_there_is_no_int8(
    branches: nn.Module, largest: dict[str, float] | None
) -> None:
    with pytest.raises(ModelError, match="was not calibrated for int8, or has changed since"):
        pack(branches, torch.int8, [Shape(1, 15)], largest)


def test_calibration_keeps_the_largest_of_all_batches(branches: nn.Module) -> None:
    small, large = pixels(Shape(1, 15)), pixels(Shape(2, 15)) * 3
    both = calibrated(branches, small, large)
    assert both == calibrated(branches, large, small)
    apart = calibrated(branches, small), calibrated(branches, large)
    assert both == {name: max(one[name] for one in apart) for name in both}


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=8), st.floats(0.01, 4))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_bytes_are_the_nearest_and_never_wrap(values: list[float], scale: float) -> None:
    x = torch.tensor(values).reshape(1, -1, 1, 1)
    there = ToBytes(scale, torch.float32)(x)
    back = ToFloats(scale, torch.float32)(there)
    expected = x.clamp(max=255 * scale)
    assert (back - expected).abs().max() <= 0.51 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", [1, 40, 400])
def test_the_packed_norm_is_the_networks(dtype: torch.dtype, largest: float) -> None:
    torch.manual_seed(0)
    norm, shape = LocalResponseNorm(16), [2, 16, 5, 5]
    x = torch.rand(shape).mul(largest).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = norm(x)
        result = Norm(norm, shape, dtype, None)(x.to(dtype)).float()
        scale = Norm.scale(norm, float(expected.max()))
        there = Norm(norm, shape, dtype, scale)(x.to(dtype)).float() * scale
        cut = Norm(norm, shape, dtype, scale / 10)(x.to(dtype)).float() * scale / 10
    close = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(result, expected, rtol=close, atol=close)
    assert (there - expected).abs().max() < 0.02 * expected.max()
    assert (cut - expected.clamp(max=25.5 * scale)).abs().max() < 0.02 * expected.max()


def test_nothing_the_norm_gives_is_above_its_bound() -> None:
    x = torch.zeros((1, 5, 1, 200))
    x[0, 2, 0] = torch.linspace(1, 2000, 200)
    assert 138 < float(LocalResponseNorm(5)(x).max()) <= LocalResponseNorm.bound


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_fp16_supported(),  # noqa: SLF001 - as PyTorch's own tests ask
    reason="this CPU has no instructions for float16",
)
def test_float16_keeps_the_norm_whose_squares_fit(googlenet: nn.Module) -> None:
    packed = pack(googlenet, torch.float16, [Shape(1, 224)])
    (graph,) = packed.graphs.values()
    assert not any(isinstance(module, Norm) for module in graph.modules())
