"""SE-ResNet-50: ResNet-50 with squeeze-and-excitation in each block.

"Squeeze-and-Excitation Networks" (Hu et al. 2017, arXiv 1709.01507), figure 3 and table 1, with
a reduction of 16; the ResNet is torchvision's.
"""

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import SqueezeExcitation

REDUCTION = 16


def build(classes: int) -> nn.Module:
    """Build the network with initial weights."""
    network: nn.Module = ResNet(Block, [3, 4, 6, 3], num_classes=classes)
    return network


class Block(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """ResNet's bottleneck with squeeze-and-excitation of its output channels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        norm: nn.BatchNorm2d = self.get_submodule("bn3")
        squeezed = norm.num_features // REDUCTION
        self.bn3 = nn.Sequential(norm, SqueezeExcitation(norm.num_features, squeezed))
