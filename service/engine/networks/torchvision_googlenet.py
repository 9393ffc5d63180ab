"""torchvision's GoogLeNet: batch norm, 3x3 where the paper has 5x5, a 2x2 fourth pool."""

from torch import Tensor, nn
from torchvision import models


def build(classes: int, *, auxiliary: bool = False) -> nn.Module:
    """Build the network with initial weights.

    Its input is (pixel - 127.5) / 127.5: torchvision normalises by ImageNet's statistics and then
    back, which together is this.
    """
    network: nn.Module = models.googlenet(
        weights=None,
        num_classes=classes,
        aux_logits=auxiliary,
        transform_input=False,
        init_weights=False,
    )
    network.avgpool = WindowedAverage()
    return network


class WindowedAverage(nn.Module):
    """Average pooling of all 7x7 windows, then of their averages.

    Equal to global pooling for a 7x7 map. For larger images this is VGG's dense evaluation, the
    mean of the class map of all windows; global pooling would weight the border as the centre.
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, 1, 1)
        return nn.functional.avg_pool2d(x, 7, stride=1).mean((2, 3), keepdim=True)
