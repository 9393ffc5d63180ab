"""How a network ends, found in the graph of its operations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import fx, nn

from service.engine.networks.tracing import traced

_PASSING = (nn.Dropout, nn.Flatten)  # in evaluation they change no value
_FLATTEN = (torch.flatten, "flatten")
_WHOLE = (1, (1, 1))  # sizes of the result of pooling
_PLACES = ((2, 3), [2, 3])  # dimensions


@dataclass(frozen=True, slots=True)
class Ending:
    """A map that is averaged and then put through one linear layer, which gives the logits."""

    features: fx.Node
    """The map: (N, C, h, w)."""
    window: int | None
    """Places along the windows that are averaged one by one, and then all; nothing: the map is."""


def with_features(network: nn.Module) -> tuple[fx.GraphModule, Ending]:
    """Have a network with class activation maps give its logits and the map they come from.

    Takes over the network; the maps' features are (N, C, h, w).
    """
    whole = traced(network)
    found = find(whole)
    assert found is not None  # noqa: S101 - it has maps; tells mypy
    (output,) = (node for node in whole.graph.nodes if node.op == "output")
    output.args = ((*output.args, found.features),)
    whole.recompile()
    return whole, found


def last(network: nn.Module) -> str:
    """Name the module that gives the logits."""
    modules = dict(network.named_modules())
    nodes = [node for node in traced(network).graph.nodes if node.op == "call_module"]
    weighted = [n for n in nodes if isinstance(modules[n.target], nn.Linear | nn.Conv2d)]
    return str(weighted[-1].target)


def find(network: fx.GraphModule) -> Ending | None:
    """Find a traced network's ending, unless it ends in another way."""
    modules = dict(network.named_modules())
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    if not isinstance(_module(logits, modules), nn.Linear):
        return None
    (pooled,) = logits.all_input_nodes
    while isinstance(_module(pooled, modules), _PASSING) or pooled.target in _FLATTEN:
        (pooled,) = pooled.all_input_nodes
    if not _is_average(pooled, modules):
        return None
    (source,) = pooled.all_input_nodes
    if source.target is not F.avg_pool2d:
        return Ending(source, None)
    features, window = source.args
    return Ending(features, window) if source.kwargs == {"stride": 1} else None


def _is_average(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a node averages a whole map."""
    module = _module(node, modules)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in _WHOLE
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1] in _WHOLE
    return node.target == "mean" and node.args[1] in _PLACES


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None
