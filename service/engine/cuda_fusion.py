"""Operator fusion for GPUs: a convolution and its ReLU become one call of cuDNN."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from service.engine.networks.tracing import folded, relu_after


class ConvReLU(nn.Module):
    """A convolution followed by ReLU, on a GPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:  # pragma: no cover - needs a GPU
        """Compute (N, out, H', W') from (N, in, H, W)."""
        conv = self.conv
        padding = cast(
            "tuple[int, ...]", conv.padding
        )  # never a name like "same" in these networks
        return torch.cudnn_convolution_relu(
            x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups
        )


def fuse(network: nn.Module) -> fx.GraphModule:
    """Fuse a network in evaluation mode, in place; other operations stay."""
    whole = folded(network)
    modules = dict(whole.named_modules())
    for node in list(whole.graph.nodes):
        if relu := relu_after(node, modules):
            conv = modules[str(node.target)]
            assert isinstance(conv, nn.Conv2d)  # noqa: S101 - for mypy: see `relu_after`
            if conv.groups > 1:
                continue  # cuDNN does not support every number of groups
            name = f"fused_{node.name}"
            whole.add_submodule(name, ConvReLU(conv))
            with whole.graph.inserting_after(relu):
                relu.replace_all_uses_with(whole.graph.call_module(name, node.args))
            whole.graph.erase_node(relu)
            whole.graph.erase_node(node)
    whole.recompile()
    return whole
