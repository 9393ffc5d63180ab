"""What feature maps have seen: activations put back to pixels by a deconvnet.

Zeiler and Fergus 2013, "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901):
one activation goes down the network that it came up. A convolution is transposed, with the same
weights and without its bias; a max pool puts a value where the largest one was (its switch); a
ReLU lets through what is above 0 of what comes down, whatever went up.

All but the last of these is what a gradient does, and it does what is wanted of averages, sums,
batch norm and branches, too. So it is the gradient here, with another rule for ReLU; and with
one for local response normalisation, which is passed by unchanged: the paper, too, normalises no
contrast on the way down.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor, fx, nn

from service.engine.networks import tracing
from service.engine.networks.googlenet import LocalResponseNorm
from service.errors import ModelError
from service.offline.visualize import network_stages

Map = npt.NDArray[np.float32]

# What a gradient goes down through as a deconvnet does.
_PLAIN_MODULES = (
    *(nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.BatchNorm2d, nn.Dropout, nn.Identity),
)
_PLAIN = {
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout),
    *(torch.cat, torch.add, operator.add, operator.iadd),
}
_NORM_MODULES = (LocalResponseNorm, nn.LocalResponseNorm)


@dataclass(frozen=True, slots=True)
class Projection:
    """The largest activation of a feature map, and what it is of."""

    channel: int
    activation: float
    map: Map  # (rows, columns): the whole feature map
    pixels: Map  # (height, width, 3) in the order of the network's channels, above and below 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer of a network, or a block of them, and its strongest feature maps."""

    name: str
    channels: int
    size: tuple[int, int]  # rows and columns of its maps
    projections: tuple[Projection, ...]  # the strongest first, if it is above 0


def look(network: nn.Module, x: Tensor, count: int) -> Iterator[Stage]:
    """Project the `count` strongest feature maps of each stage down to a view, (1, 3, H, W).

    Takes over the network, in evaluation mode. Raises `ModelError` where there are no stages, or
    layers on the way to them of which it is not known how something comes down.
    """
    graph, names = network_stages.cut(tracing.folded(network.requires_grad_(requires_grad=False)))
    rows = x.detach().repeat(count, 1, 1, 1).requires_grad_()  # one for each map
    for name, features in zip(names, _Deconvnet(graph).run(rows), strict=True):
        _, channels, *size = features.shape
        yield Stage(name, channels, (size[0], size[1]), _projections(rows, features))


def _projections(rows: Tensor, features: Tensor) -> tuple[Projection, ...]:
    """Project the largest value of each of the strongest maps, all others 0, in a row of its own.

    `rows` are (N, 3, H, W), and `features`, (N, C, h, w), have been made of them.
    """
    maps = features.detach()[0]
    values, places = maps.flatten(1).max(1)
    strongest = values.topk(min(len(rows), len(values))).indices.tolist()
    alone = torch.zeros_like(features)
    for row, channel in enumerate(strongest):
        alone[row, channel].view(-1)[places[channel]] = values[channel]
    (down,) = torch.autograd.grad(features, rows, alone, retain_graph=True)
    return tuple(
        Projection(channel, float(values[channel]), maps[channel].numpy(), pixels)
        for channel, pixels in zip(strongest, down.permute(0, 2, 3, 1).numpy(), strict=False)
        if values[channel] > 0
    )


class _Rectify(torch.autograd.Function):
    """ReLU upwards, and downwards again."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(_: Any, down: Tensor) -> Tensor:
        return down.relu()


class _PassBy(torch.autograd.Function):
    """What was made of `x` upwards, and downwards nothing."""

    @staticmethod
    def forward(_: Any, x: Tensor, made: Tensor) -> Tensor:
        return made.view_as(x)

    @staticmethod
    def backward(_: Any, down: Tensor) -> tuple[Tensor, None]:
        return down, None


class _Deconvnet(fx.Interpreter):
    """Runs a network so that its gradient is what a deconvnet gives."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False  # which it would put into our sentences

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer, by its own rule if it has one."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.ReLU):
            return _Rectify.apply(args[0])
        if isinstance(module, _NORM_MODULES):
            return _PassBy.apply(args[0], module(args[0].detach()))
        if isinstance(module, _PLAIN_MODULES):
            return module(*args, **kwargs)
        raise _unknown(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function, by its own rule if it has one."""
        if target in tracing.RELUS:
            return _Rectify.apply(args[0])
        if target in _PLAIN:
            return target(*args, **kwargs)
        raise _unknown(target.__name__)

    def call_method(self, target: Any, *_: Any) -> Any:
        """Run none."""
        raise _unknown(target)


def _unknown(layer: str) -> ModelError:
    return ModelError(f"it is not known how to come down through {layer}")
