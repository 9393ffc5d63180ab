"""The registry: an architecture's name to the network it stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from service.errors import ModelError
from service.networks import googlenet


class Build(Protocol):
    """Makes a network, freshly initialised."""

    def __call__(self, classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
        """Make it with so many classes, every layer `width` times as wide as published.

        With `auxiliary` classifiers its forward gives, in training mode, the logits and those
        of each of them; without, or in evaluation, the logits. Raises `ModelError` for a width
        that it does not come in.
        """
        ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, and how foreign weights files name its parameters."""

    build: Build
    caffe_layers: Callable[[], Mapping[str, str]]
    """Caffe's layer name -> the module that takes its blobs; empty if Caffe never had it."""
    auxiliary: tuple[str, ...]
    """Prefixes of the parameters that serve in training only and are not kept."""
    last: str
    """The module that knows the classes; with other classes it has to be learnt anew."""
    maps: str | None
    """The module whose output is averaged, in windows of 7x7, and then put into `last`; or none."""


def _googlenet(classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
    return googlenet.GoogLeNet(classes, width, auxiliary=auxiliary)


def _torchvision_googlenet(
    classes: int, width: float = 1.0, *, auxiliary: bool = False
) -> nn.Module:
    from service.networks import torchvision_googlenet  # noqa: PLC0415 - takes seconds

    if width != 1:
        raise ModelError("torchvision_googlenet comes in width 1 only; googlenet in any")
    return torchvision_googlenet.build(classes, auxiliary=auxiliary)


ARCHITECTURES: Mapping[str, Architecture] = {
    "googlenet": Architecture(
        _googlenet, googlenet.caffe_layers, ("aux_",), "linear", "inception.5b"
    ),
    "torchvision_googlenet": Architecture(
        _torchvision_googlenet, dict, ("aux1.", "aux2."), "fc", "inception5b"
    ),
}
