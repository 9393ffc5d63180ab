"""The stages of a network: its layers of convolutions that everything passes, by name."""

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from service.engine.networks.tracing import is_relu
from service.errors import ModelError


def cut(network: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Have a network give the outputs of its stages in place of its own, and name them.

    A stage ends with a ReLU or a concatenation that everything passes, and has convolutions
    that see more of the image than the stage before. Raises `ModelError` if there is none.
    """
    ends = dict(_ends(network))
    if not ends:
        raise ModelError("the network has no convolutions with a ReLU that everything passes")
    graph = network.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (tuple(ends.values()),)
    graph.eliminate_dead_code()
    return fx.GraphModule(network, graph), tuple(ends)


def _ends(network: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    modules = dict(network.named_modules())
    nodes = list(network.graph.nodes)
    necks = set(_necks(nodes))
    convs: list[str] = []  # that see more, since the last stage
    for node in nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            convs.append(str(node.target))
        is_end = node.target is torch.cat or is_relu(node, modules)
        if convs and is_end and node in necks:
            yield _name(convs), node
            convs = []


def _necks(nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """Find the nodes that everything passes: nothing from before them is used behind them."""
    place = {node: at for at, node in enumerate(nodes)}
    last = 0  # place where something from before is used
    for at, node in enumerate(nodes):
        if last <= at:
            yield node
        last = max([last, *(place[user] for user in node.users)])


def _name(convs: Sequence[str]) -> str:
    """Name a stage by the module that its convolutions are in, or by the last of them."""
    paths = [name.split(".") for name in convs]
    shared = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or convs[-1]
