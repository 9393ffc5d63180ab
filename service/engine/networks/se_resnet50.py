"""SE-ResNet-50: each block of ResNet-50 weighs its channels before it is added.

"Squeeze-and-Excitation Networks" (Hu et al. 2017, arXiv 1709.01507), figure 3 and table 1, with
a reduction of 16; the ResNet is torchvision's.
"""

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import SqueezeExcitation

REDUCTION = 16


def build(classes: int) -> nn.Module:
    """Make the network, freshly initialised."""
    network: nn.Module = ResNet(Block, [3, 4, 6, 3], num_classes=classes)
    return network


class Block(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """A bottleneck of ResNet whose channels are weighed by what all of them say on average."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        norm: nn.BatchNorm2d = self.get_submodule("bn3")
        squeezed = norm.num_features // REDUCTION
        self.bn3 = nn.Sequential(norm, SqueezeExcitation(norm.num_features, squeezed))
