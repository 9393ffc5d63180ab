"""Tracing of networks in evaluation mode to operation graphs."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import fx, nn
from torch.fx.experimental import optimization

from service.engine.networks.googlenet import LocalResponseNorm

RELUS = (F.relu, torch.relu)


def traced(network: nn.Module) -> fx.GraphModule:
    """Trace a network; convolutions and response normalisations stay modules."""
    return fx.GraphModule(network, _Tracer().trace(network))


def folded(network: nn.Module) -> fx.GraphModule:
    """Trace a network and fold each batch norm into the convolution before it."""
    return cast("fx.GraphModule", optimization.fuse(traced(network), no_trace=True))


def relu_after(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Return the ReLU that is the only user of a convolution's output, if any."""
    is_module = node.op == "call_module"
    if not (is_module and isinstance(modules[str(node.target)], nn.Conv2d)) or len(node.users) != 1:
        return None
    (user,) = node.users
    return user if is_relu(user, modules) else None


def is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is a ReLU, as a function or a module."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in RELUS


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d | LocalResponseNorm)
        return whole or super().is_leaf_module(m, module_qualified_name)
