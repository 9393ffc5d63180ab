"""The rewritten network answers as the network it was made from."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service import images, views
from service.ensemble import Forward
from service.networks import ARCHITECTURES
from service.networks.googlenet import GoogLeNet
from service.packed import MaxPool, PackedConv, Shape, pack
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
    model = real_store.load("bvlc_googlenet")
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
