"""The stages of a network: convolutions between points that all activations pass, by name."""

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from service.engine.networks.tracing import is_relu
from service.errors import ModelError


def cut(network: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return a network with the outputs of its stages in place of its own, and their names.

    A stage ends with a ReLU or a concatenation that all activations pass, and has convolutions
    larger than 1x1. Raises `ModelError` without stages.
    """
    ends = dict(_ends(network))
    if not ends:
        raise ModelError("the network has no convolutions before a ReLU that all activations pass")
    graph = network.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (tuple(ends.values()),)
    graph.eliminate_dead_code()
    return fx.GraphModule(network, graph), tuple(ends)


def _ends(network: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    modules = dict(network.named_modules())
    nodes = list(network.graph.nodes)
    bottlenecks = set(_bottlenecks(nodes))
    convs: list[str] = []  # larger than 1x1, since the last stage
    for node in nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            convs.append(str(node.target))
        is_end = node.target is torch.cat or is_relu(node, modules)
        if convs and is_end and node in bottlenecks:
            yield _name(convs), node
            convs = []


def _bottlenecks(nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """Yield the nodes behind which no earlier node is used."""
    indices = {node: index for index, node in enumerate(nodes)}
    last = 0  # index of the last user of an earlier node
    for index, node in enumerate(nodes):
        if last <= index:
            yield node
        last = max([last, *(indices[user] for user in node.users)])


def _name(convs: Sequence[str]) -> str:
    """Return the module that contains the convolutions, or the last of them."""
    paths = [name.split(".") for name in convs]
    shared = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or convs[-1]
