"""torchvision's GoogLeNet: batch norm, 3x3 where the paper has 5x5, a 2x2 fourth pool."""

from torch import Tensor, nn
from torchvision import models


def build(classes: int, *, auxiliary: bool = False) -> nn.Module:
    """Make the network, freshly initialised.

    Its input is (pixel - 127.5) / 127.5: torchvision normalises twice when it serves its own
    weights, by ImageNet's statistics and back, and the two together are just this.
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
    """Average every 7x7 window, then the windows; over 7x7 it is the plain mean.

    torchvision pools globally, which for a larger image weighs the border as much as the
    centre; VGG's dense evaluation averages the class map of all windows instead.
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, 1, 1)
        return nn.functional.avg_pool2d(x, 7, stride=1).mean((2, 3), keepdim=True)
