"""The networks by name: those of papers, written here, and torchvision's."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from service.engine.networks import ending, googlenet, lenet5, xception, zfnet
from service.engine.networks.tracing import traced
from service.errors import ModelError


class Build(Protocol):
    """Makes a network, freshly initialised."""

    def __call__(self, classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
        """Make it with so many classes, every layer `width` times as wide as published.

        With `auxiliary` classifiers, if it has any, its forward gives, in training mode, the
        logits and those of each of them; without, or in evaluation, the logits. Raises
        `ModelError` for a width that it does not come in.
        """
        ...


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, and how foreign weights files name its parameters."""

    build: Build
    caffe_layers: Callable[[], Mapping[str, str]] = dict
    """Caffe's layer name -> the module that takes its blobs; empty if Caffe never had it."""
    auxiliary: tuple[str, ...] = ()
    """Prefixes of the parameters that serve in training only and are not kept."""
    renamed: Callable[[str], str] = str
    """A parameter's name in foreign files -> its name here."""

    def outline(self, classes: int, width: float = 1.0) -> nn.Module:
        """Make the network without its numbers: shapes alone, in no time and no memory."""
        try:
            with torch.device("meta"):
                network = self.build(classes, width)
        except NotImplementedError:  # RegNet computes its widths with tensors
            network = self.build(classes, width).to("meta")
        return network.eval()

    @cached_property
    def _smallest(self) -> nn.Module:
        """What is the same for any number of classes is read off this one."""
        return self.outline(1)

    @cached_property
    def last(self) -> str:
        """The module that knows the classes; with other classes it has to be learnt anew."""
        return ending.last(self._smallest)

    @cached_property
    def explains(self) -> bool:
        """Has it class activation maps: does it end in an average and one linear layer."""
        return ending.find(traced(self._smallest)) is not None

    def takes(self, side: int) -> bool:
        """Tell whether it works on squares of so many pixels."""
        try:
            self._smallest(torch.empty((1, 3, side, side), device="meta"))
        except (AssertionError, RuntimeError):  # how networks say that it must be another size
            return False
        return True


def _googlenet(classes: int, width: float = 1.0, *, auxiliary: bool = False) -> nn.Module:
    return googlenet.GoogLeNet(classes, width, auxiliary=auxiliary)


def _torchvision_googlenet(classes: int, *, auxiliary: bool) -> nn.Module:
    from service.engine.networks import torchvision_googlenet  # noqa: PLC0415 - takes seconds

    return torchvision_googlenet.build(classes, auxiliary=auxiliary)


def _se_resnet50(classes: int) -> nn.Module:
    from service.engine.networks import se_resnet50  # noqa: PLC0415 - the same

    return se_resnet50.build(classes)


def _as_published(name: str, make: Callable[[int], nn.Module]) -> Build:
    """Have a network come in the width it was published in, and without auxiliary classifiers."""

    def plain(classes: int, *, auxiliary: bool) -> nn.Module:  # noqa: ARG001 - it has none
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
"""Those that are not just torchvision's."""


@cache
def architecture(name: str) -> Architecture:
    """Find an architecture: one of `ARCHITECTURES`, or torchvision's classifier of that name.

    Raises `ModelError` if there is none, with the name that is nearest to it.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    from service.engine.networks import torchvision_networks as theirs  # noqa: PLC0415 - takes seconds

    names = theirs.names()
    if name not in names:
        near = difflib.get_close_matches(name, [*ARCHITECTURES, *names], 1)
        meant = f"; do you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"there is no architecture {name!r}; there are {', '.join(ARCHITECTURES)} "
            f"and torchvision's networks for classification{meant}"
        )
    return Architecture(
        _as_published(name, partial(theirs.build, name)),
        auxiliary=theirs.AUXILIARY,
        renamed=theirs.renamed,
    )


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network these of its parameters; those that are not among them stay."""
    known = network.state_dict()  # knows the versions of its own modules, which some insist on
    known.update(state)
    network.load_state_dict(known, strict=False)
