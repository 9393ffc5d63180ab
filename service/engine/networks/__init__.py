"""The architectures by name: this package's own networks, and torchvision's."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from service.engine.networks import classifier_head, googlenet, lenet5, xception, zfnet
from service.engine.networks.tracing import traced
from service.errors import ModelError


class Build(Protocol):
    """Builds a network with initial weights."""

    def __call__(self, classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
        """Build it for `classes`, every layer `width` times as wide as published.

        Forward returns the logits. With `auxiliary` classifiers, if it has any, it returns in
        training mode also the logits of each. Raises `ModelError` for an unsupported width.
        """
        ...


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, with the parameter names of foreign weights files."""

    build: Build
    caffe_layers: Callable[[], Mapping[str, str]] = dict
    """Caffe's layer name -> module name; empty if there is no Caffe model."""
    auxiliary: tuple[str, ...] = ()
    """Prefixes of parameters used in training only, which are not stored."""
    renamed: Callable[[str], str] = str
    """Parameter name in foreign files -> name in this package."""

    def outline(self, classes: int, width: float = 1.0) -> nn.Module:
        """Build the network on the meta device: shapes without values."""
        try:
            with torch.device("meta"):
                network = self.build(classes, width)
        except NotImplementedError:  # RegNet computes its widths with tensors
            network = self.build(classes, width).to("meta")
        return network.eval()

    @cached_property
    def _smallest(self) -> nn.Module:
        """For properties that do not depend on the number of classes."""
        return self.outline(1)

    @cached_property
    def last(self) -> str:
        """The module that computes the logits; replaced when fine-tuning to other classes."""
        return classifier_head.last(self._smallest)

    @cached_property
    def explains(self) -> bool:
        """Whether it has class activation maps: ends in average pooling and one linear layer."""
        return classifier_head.find(traced(self._smallest)) is not None

    def takes(self, side: int) -> bool:
        """Whether it supports square inputs of `side` pixels."""
        try:
            self._smallest(torch.empty((1, 3, side, side), device="meta"))
        except (AssertionError, RuntimeError):  # raised for an unsupported size
            return False
        return True


def _googlenet(classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
    return googlenet.GoogLeNet(classes, width, auxiliary=auxiliary)


def _torchvision_googlenet(classes: int, *, auxiliary: bool) -> nn.Module:
    from service.engine.networks import torchvision_networks  # noqa: PLC0415 - slow

    return torchvision_networks.build_googlenet(classes, auxiliary=auxiliary)


def _se_resnet50(classes: int) -> nn.Module:
    from service.engine.networks import se_resnet50  # noqa: PLC0415 - the same

    return se_resnet50.build(classes)


def _as_published(name: str, make: Callable[[int], nn.Module]) -> Build:
    """Build a network of one width, without auxiliary classifiers."""

    def plain(classes: int, *, auxiliary: bool) -> nn.Module:  # noqa: ARG001 - none
        return make(classes)

    return _in_one_width(name, plain)


def _in_one_width(name: str, make: Callable[..., nn.Module]) -> Build:
    def build(classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
        if width != 1:
            raise ModelError(f"{name} comes in width 1 only; googlenet in any")
        return make(classes, auxiliary=auxiliary)

    return build


ARCHITECTURES: Mapping[str, Architecture] = {
    "googlenet": Architecture(_googlenet, googlenet.caffe_layers, ("aux_",)),
    "torchvision_googlenet": Architecture(
        _in_one_width("torchvision_googlenet", _torchvision_googlenet),
        auxiliary=("aux1.", "aux2."),
    ),
    "lenet5": Architecture(_as_published("lenet5", lenet5.LeNet5)),
    "zfnet": Architecture(_as_published("zfnet", zfnet.build)),
    "xception": Architecture(_as_published("xception", xception.Xception)),
    "se_resnet50": Architecture(_as_published("se_resnet50", _se_resnet50)),
}
"""The networks that are not plain torchvision."""


@cache
def architecture(name: str) -> Architecture:
    """Return an architecture of `ARCHITECTURES` or torchvision by name.

    Raises `ModelError` with the closest name if there is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    from service.engine.networks import torchvision_networks  # noqa: PLC0415 - slow

    names = torchvision_networks.names()
    if name not in names:
        close = difflib.get_close_matches(name, [*ARCHITECTURES, *names], 1)
        hint = f"; do you mean {close[0]!r}?" if close else ""
        raise ModelError(
            f"there is no architecture {name!r}; there are {', '.join(ARCHITECTURES)} "
            f"and torchvision's networks for classification{hint}"
        )
    return Architecture(
        _as_published(name, partial(torchvision_networks.build, name)),
        auxiliary=torchvision_networks.AUXILIARY,
        renamed=torchvision_networks.renamed,
    )


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load parameters into a network; others keep their values."""
    complete = network.state_dict()  # has module versions, which some modules require
    complete.update(state)
    network.load_state_dict(complete, strict=False)
