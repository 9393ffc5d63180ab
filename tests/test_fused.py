"""The network rewritten for a GPU: every ReLU is its convolution's, and the answer stays."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from conftest import needs_gpu
from torch import Tensor, nn

from service.folding import RELUS
from service.fused import ConvReLU, fuse
from service.networks import ARCHITECTURES
from service.networks.googlenet import GoogLeNet


class Twice(nn.Module):
    """A convolution whose result is wanted before the ReLU, too, and one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> the same
        x = self.shared(x)
        return self.last(F.relu(x) - x)  # type: ignore[no-any-return]  # nn.Module calls are untyped


@pytest.mark.parametrize("name", ["googlenet", "torchvision_googlenet"])
def test_every_relu_of_a_network_becomes_a_convolutions(name: str) -> None:
    network = ARCHITECTURES[name].build(10).eval()
    fused = fuse(network)
    assert sum(isinstance(module, ConvReLU) for module in fused.modules()) == 57
    assert not any(node.target in RELUS for node in fused.graph.nodes)


def test_a_result_that_is_wanted_without_its_relu_is_kept() -> None:
    network = Twice().eval()
    x = torch.randn(2, 3, 4, 4)
    wanted = network(x)
    assert torch.equal(fuse(copy.deepcopy(network))(x), wanted)


class Modules(nn.Module):
    """ReLUs that are modules, one of them used twice, and a convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 4, H, W)
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.relu(self.grouped(x))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def test_relus_that_are_modules_are_merged_and_groups_are_left() -> None:
    fused = fuse(Modules().eval())
    assert sum(isinstance(module, ConvReLU) for module in fused.modules()) == 2
    names = [str(node.target) for node in fused.graph.nodes if node.op == "call_module"]
    assert names == ["fused_first", "fused_second", "grouped", "relu"]


@needs_gpu
@pytest.mark.parametrize("rows", [1, 8])
def test_on_a_gpu_it_answers_as_before(rows: int) -> None:
    gpu = torch.device("cuda", 0)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's stub
    network = GoogLeNet(classes=10, auxiliary=False).eval().to(gpu)
    x = 50 * torch.randn(rows, 3, 224, 224, device=gpu)
    with torch.inference_mode():
        wanted = network(x)
        assert torch.allclose(fuse(network)(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
