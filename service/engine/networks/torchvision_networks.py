"""torchvision's classification networks."""

import re

from torch import nn
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


def renamed(name: str) -> str:
    """Return the current name of a parameter in torchvision's published weights."""
    return _OLD_NAME.sub(r"\1\2", name)
