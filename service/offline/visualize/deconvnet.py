"""Deconvnet: projects activations of feature maps back to pixels.

Zeiler and Fergus 2013, "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901):
an activation is passed backwards through the network. A convolution is transposed, with the same
weights and without its bias; a max pool puts a value where the maximum was (its switch); a ReLU
keeps the positive part of the value passed backwards, whatever its own input was.

All but the last is what a gradient does, and it also handles averages, sums, batch norm and
branches. So this is the gradient with another rule for ReLU; and with one for local response
normalisation, which is skipped: the paper does not invert contrast normalisation either.
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

# Layers whose gradient is the deconvnet's.
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
    """The largest activation of a feature map, and its projection."""

    channel: int
    activation: float
    map: Map  # (rows, columns): the whole feature map
    pixels: Map  # (height, width, 3), signed, in the network's channel order


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer or block of a network, and its strongest feature maps."""

    name: str
    channels: int
    size: tuple[int, int]  # rows and columns of its maps
    projections: tuple[Projection, ...]  # strongest first; positive activations only


def look(network: nn.Module, x: Tensor, count: int) -> Iterator[Stage]:
    """Project the `count` strongest feature maps of each stage to the pixels of `x`, (1, 3, H, W).

    Modifies the network, which has to be in evaluation mode. Raises `ModelError` without stages,
    or for a layer without a rule.
    """
    graph, names = network_stages.cut(tracing.folded(network.requires_grad_(requires_grad=False)))
    rows = x.detach().repeat(count, 1, 1, 1).requires_grad_()  # one for each map
    for name, features in zip(names, _Deconvnet(graph).run(rows), strict=True):
        _, channels, *size = features.shape
        yield Stage(name, channels, (size[0], size[1]), _projections(rows, features))


def _projections(rows: Tensor, features: Tensor) -> tuple[Projection, ...]:
    """Project the largest value of each of the strongest maps alone, one map per row.

    `features`, (N, C, h, w), are computed from `rows`, (N, 3, H, W).
    """
    maps = features.detach()[0]
    values, positions = maps.flatten(1).max(1)
    strongest = values.topk(min(len(rows), len(values))).indices.tolist()
    single = torch.zeros_like(features)
    for row, channel in enumerate(strongest):
        single[row, channel].view(-1)[positions[channel]] = values[channel]
    (pixels,) = torch.autograd.grad(features, rows, single, retain_graph=True)
    return tuple(
        Projection(channel, float(values[channel]), maps[channel].numpy(), projected)
        for channel, projected in zip(strongest, pixels.permute(0, 2, 3, 1).numpy(), strict=False)
        if values[channel] > 0
    )


class _Rectify(torch.autograd.Function):
    """ReLU, and ReLU of the gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.relu()


class _Skip(torch.autograd.Function):
    """A layer's output, with the gradient of the identity."""

    @staticmethod
    def forward(_: Any, x: Tensor, output: Tensor) -> Tensor:
        return output.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Deconvnet(fx.Interpreter):
    """Runs a network so that its gradient is the deconvnet's projection."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False  # it would be added to our errors

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer, by its own rule if it has one."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.ReLU):
            return _Rectify.apply(args[0])
        if isinstance(module, _NORM_MODULES):
            return _Skip.apply(args[0], module(args[0].detach()))
        if isinstance(module, _PLAIN_MODULES):
            return module(*args, **kwargs)
        raise _no_rule(type(module).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function, by its own rule if it has one."""
        if target in tracing.RELUS:
            return _Rectify.apply(args[0])
        if target in _PLAIN:
            return target(*args, **kwargs)
        raise _no_rule(target.__name__)

    def call_method(self, target: Any, *_: Any) -> Any:
        """Refuse methods, which have no rules."""
        raise _no_rule(target)


def _no_rule(layer: str) -> ModelError:
    return ModelError(f"the deconvnet has no rule for the layer {layer}")
