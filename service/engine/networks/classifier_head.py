"""The end of a network, pooling and classifier, found in its traced graph."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import fx, nn

from service.engine.networks.tracing import traced

_IDENTITY = (nn.Dropout, nn.Flatten)  # change no value in evaluation mode
_FLATTEN = (torch.flatten, "flatten")
_GLOBAL = (1, (1, 1))  # output sizes of global pooling
_SPATIAL = ((2, 3), [2, 3])  # dimensions


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """A feature map, average pooling, and one linear layer that computes the logits."""

    features: fx.Node
    """The feature map: (N, C, h, w)."""
    window: int | None
    """Side of the pooling windows, whose averages are averaged; None: global pooling."""


def with_features(network: nn.Module) -> tuple[fx.GraphModule, ClassifierHead]:
    """Change a network with class activation maps to return its logits and feature map.

    In place; the features are (N, C, h, w).
    """
    whole = traced(network)
    head = find(whole)
    assert head is not None  # noqa: S101 - for mypy: it has maps
    (output,) = (node for node in whole.graph.nodes if node.op == "output")
    output.args = ((*output.args, head.features),)
    whole.recompile()
    return whole, head


def last(network: nn.Module) -> str:
    """Return the name of the module that computes the logits."""
    modules = dict(network.named_modules())
    nodes = [node for node in traced(network).graph.nodes if node.op == "call_module"]
    layers = [n for n in nodes if isinstance(modules[n.target], nn.Linear | nn.Conv2d)]
    return str(layers[-1].target)


def find(network: fx.GraphModule) -> ClassifierHead | None:
    """Find the head of a traced network; None if it is another kind."""
    modules = dict(network.named_modules())
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    if not isinstance(_module(logits, modules), nn.Linear):
        return None
    (pooled,) = logits.all_input_nodes
    while isinstance(_module(pooled, modules), _IDENTITY) or pooled.target in _FLATTEN:
        (pooled,) = pooled.all_input_nodes
    if not _is_average(pooled, modules):
        return None
    (source,) = pooled.all_input_nodes
    if source.target is not F.avg_pool2d:
        return ClassifierHead(source, None)
    features, window = source.args
    return ClassifierHead(features, window) if source.kwargs == {"stride": 1} else None


def _is_average(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is global average pooling."""
    module = _module(node, modules)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in _GLOBAL
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1] in _GLOBAL
    return node.target == "mean" and node.args[1] in _SPATIAL


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None
