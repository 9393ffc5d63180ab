"""torchvision's classification networks."""

import re

from torch import Tensor, nn
from torchvision import models

from service.engine.networks.windowed import Windowed

AUXILIARY = ("AuxLogits.",)  # of Inception v3, in the published weights

_NO_AUXILIARY = {"aux_logits": False, "init_weights": False}

# torchvision's own rule: DenseNet's published weights have older names.
_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")


def names() -> list[str]:
    """List the networks; the two GoogLeNets are in `ARCHITECTURES`."""
    return [name for name in models.list_models(module=models) if name != "googlenet"]


def build(name: str, classes: int) -> nn.Module:
    """Build a network with initial weights.

    AlexNet and VGG, whose classifiers are fully connected, run on every window of a larger image.
    The others average their last map of any size; as the last layer is linear, that equals the
    mean of the class map.
    """
    options = _NO_AUXILIARY if name == "inception_v3" else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if isinstance(network, models.AlexNet | models.VGG):
        return Windowed(network.features, network.classifier, network.avgpool.output_size[0])
    return network


def build_googlenet(classes: int, *, auxiliary: bool) -> nn.Module:
    """Build GoogLeNet: batch norm, 3x3 where the paper has 5x5, a 2x2 fourth pool.

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


def renamed(name: str) -> str:
    """Return the current name of a parameter in torchvision's published weights."""
    return _OLD_NAME.sub(r"\1\2", name)
