"""torchvision's networks for classification, as it makes them."""

import re

from torch import nn
from torchvision import models

from service.engine.networks.windowed import Windowed

AUXILIARY = ("AuxLogits.",)  # of Inception v3, in the weights that are published

_NO_AUXILIARY = {"aux_logits": False, "init_weights": False}

# torchvision's own rule: DenseNet's published weights are older than today's names.
_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")


def names() -> list[str]:
    """Name them all; the two GoogLeNets have an entry of their own."""
    return [name for name in models.list_models(module=models) if name != "googlenet"]


def build(name: str, classes: int) -> nn.Module:
    """Make a network, freshly initialised.

    AlexNet and VGG, whose classifiers are fully connected, see a larger image window by
    window. The others average their last map, whatever its size: the last layer is linear, so
    that is the mean of the class map, too.
    """
    options = _NO_AUXILIARY if name == "inception_v3" else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if isinstance(network, models.AlexNet | models.VGG):
        return Windowed(network.features, network.classifier, network.avgpool.output_size[0])
    return network


def renamed(name: str) -> str:
    """Give today's name of a parameter in weights that torchvision publishes."""
    return _OLD_NAME.sub(r"\1\2", name)
