"""The registry: an architecture's name to the network it stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from service.networks import googlenet


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, and how foreign weights files name its parameters."""

    build: Callable[[int], nn.Module]
    """Makes the network for a number of classes, as it serves: no auxiliary classifiers."""
    caffe_layers: Callable[[], Mapping[str, str]]
    """Caffe's layer name -> the module that takes its blobs; empty if Caffe never had it."""
    dropped: tuple[str, ...]
    """Prefixes of the parameters that serve in training only and are not kept."""


def _torchvision_googlenet(classes: int) -> nn.Module:
    from service.networks import torchvision_googlenet  # noqa: PLC0415 - takes seconds

    return torchvision_googlenet.build(classes)


ARCHITECTURES: Mapping[str, Architecture] = {
    "googlenet": Architecture(
        partial(googlenet.GoogLeNet, auxiliary=False), googlenet.caffe_layers, ("aux_",)
    ),
    "torchvision_googlenet": Architecture(_torchvision_googlenet, dict, ("aux1.", "aux2.")),
}
