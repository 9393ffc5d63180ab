"""A network rewritten for the CPU, for every batch size that it will meet.

What PyTorch's compiler would make of it, without a compiler and in milliseconds:

- each convolution with the ReLU that follows it is one call of oneDNN, on weights laid out for
  the processor (its matrix units included) and for the very shape it will be given;
- batch norm is folded into the convolution before it;
- max pooling is a maximum of shifted slices, without the indices that only training needs;
- in int8, whatever is between two convolutions and never below zero stays in bytes.
"""

import copy
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from service.errors import ModelError
from service.folding import folded, is_relu, relu_after
from service.networks.googlenet import LocalResponseNorm
from service.operators import (
    LARGEST,
    ByteConv,
    BytePool,
    MaxPool,
    Norm,
    PackedConv,
    ToBytes,
    ToFloats,
)

_KEEPING = (torch.cat, operator.mul)  # never below zero if what they are given is not
_KEEPING_MODULES = (nn.MaxPool2d, LocalResponseNorm)


class Shape(NamedTuple):
    """Pictures in a batch, and pixels of their side."""

    rows: int
    side: int


class Packed(nn.Module):
    """The rewritten network, one graph for each shape."""

    def __init__(self, graphs: Mapping[Shape, fx.GraphModule]) -> None:
        super().__init__()
        self.graphs = dict(graphs)

    def forward(self, x: Tensor) -> Tensor:
        """Do what the network did; raises `KeyError` for a shape it was not packed for."""
        logits: Tensor = self.graphs[Shape(x.shape[0], x.shape[-1])](x)
        return logits


def floats(dtype: torch.dtype) -> torch.dtype:
    """Give the number format of what is not in bytes, the network's input among it.

    Beside int8 that is bfloat16, or float32 on a CPU that has no instructions for it.
    """
    if dtype != torch.int8:
        return dtype
    has_halves = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - PyTorch asks so
    return torch.bfloat16 if has_halves else torch.float32


def pack(
    network: nn.Module,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    largest: Mapping[str, float] | None = None,
) -> Packed:
    """Take over a network in evaluation mode; what is neither convolution nor pool stays.

    For int8 `largest` holds what `calibrate` found.
    """
    exact = folded(network)
    known = (largest or {}) if dtype == torch.int8 else None
    if known is not None and not {node.name for node in exact.graph.nodes} <= {*known}:
        raise ModelError("the network was not calibrated for int8, or has changed since")
    plain = copy.deepcopy(exact).to(floats(dtype))
    graphs = {}
    for side in {shape.side for shape in shapes}:
        with torch.inference_mode():
            ShapeProp(plain).propagate(torch.zeros((1, 3, side, side), dtype=floats(dtype)))
        for shape in shapes:
            if shape.side == side:
                rewriting = _Rewriting(plain, exact, shape.rows, floats(dtype), known)
                graphs[shape] = rewriting.graph()
    return Packed(graphs)


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Find the largest value of every tensor within a network, on batches of its input."""
    recorder = _Recorder(folded(network))
    with torch.inference_mode():
        for batch in batches:
            recorder.run(batch)
    return recorder.largest


class _Recorder(fx.Interpreter):
    """Runs a network and remembers the largest value that each node had."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.largest: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        value = float(result.max()) if isinstance(result, Tensor) else 0.0
        self.largest[n.name] = max(self.largest.get(n.name, 0.0), value)
        return result


class _Rewriting:
    """The making of one graph: of what is needed in floats, in bytes, or in both."""

    def __init__(
        self,
        network: fx.GraphModule,
        exact: fx.GraphModule,
        rows: int,
        dtype: torch.dtype,
        largest: Mapping[str, float] | None,
    ) -> None:
        self._nodes = list(network.graph.nodes)
        self._modules = dict(network.named_modules())
        self._exact = dict(exact.named_modules())
        self._rest = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self._rows, self._dtype, self._largest = rows, dtype, largest or {}
        self._graph = fx.Graph()
        self._made: dict[str, nn.Module] = {}
        self._floats: dict[fx.Node, fx.Node] = {}
        self._bytes: dict[fx.Node, fx.Node] = {}
        self._relus = {
            conv: relu for conv in self._nodes if (relu := relu_after(conv, self._modules))
        }
        self._positive = self._find_positive()
        self._wanted = self._find_wanted()  # in bytes
        self._groups = self._find_groups()

    def graph(self) -> fx.GraphModule:
        """Make it."""
        convs = {relu: conv for conv, relu in self._relus.items()}
        for node in self._nodes:
            module = self._module(node)
            if node in convs:
                self._convolve(convs[node], node)
            elif isinstance(module, nn.Conv2d):
                if node not in self._relus:
                    self._convolve(node, node)
            elif node in self._wanted and self._passes(node):
                self._pass(node)
            elif isinstance(module, LocalResponseNorm) and Norm.takes(self._dtype):
                self._normalise(node, module)
            elif isinstance(module, nn.MaxPool2d) and MaxPool.takes(module):
                pool = MaxPool(module, positive=node in self._positive)
                self._floats[node] = self._call(node, pool, self._floats[node.args[0]])
            else:
                self._floats[node] = self._graph.node_copy(node, self._floats.__getitem__)
            self._convert(node)
        return fx.GraphModule({**self._rest, **self._modules, **self._made}, self._graph)

    # What the network is like.

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _find_positive(self) -> set[fx.Node]:
        """Prove, where it is easy, that a node's result is nowhere below zero."""
        found: set[fx.Node] = set()
        for node in self._nodes:
            keeps = node.target in _KEEPING or isinstance(self._module(node), _KEEPING_MODULES)
            positive = node.target == "sqrt" or is_relu(node, self._modules)
            if positive or (keeps and found.issuperset(node.all_input_nodes)):
                found.add(node)
        return found

    def _takes_bytes(self, node: fx.Node) -> bool:
        module = self._module(node)
        return (
            bool(self._largest)
            and isinstance(module, nn.Conv2d)
            and ByteConv.takes(module)
            and node.args[0] in self._positive
        )

    def _passes(self, node: fx.Node) -> bool:
        """Tell whether a node only moves values, so that it can do so with bytes."""
        return node.target is torch.cat or isinstance(self._module(node), nn.MaxPool2d)

    def _uses_bytes(self, user: fx.Node, wanted: set[fx.Node]) -> bool:
        """Tell whether bytes are what a user takes, or passes on to one that does."""
        return self._takes_bytes(user) or (user in wanted and self._passes(user))

    def _find_wanted(self) -> set[fx.Node]:
        """Find the nodes of which a convolution of bytes makes use, through those that pass."""
        wanted: set[fx.Node] = set()
        for node in reversed(self._nodes):
            if node in self._positive and any(self._uses_bytes(u, wanted) for u in node.users):
                wanted.add(node)
        return wanted

    def _find_groups(self) -> dict[fx.Node, fx.Node]:
        """Put together what must have one scale: a node that passes, and what it passes on."""
        groups = {node: node for node in self._wanted}
        for node in self._nodes:
            if node in self._wanted and self._passes(node):
                joined = {groups[one] for one in (node, *node.all_input_nodes)}
                groups |= {one: node for one, group in groups.items() if group in joined}
        return groups

    def _scale(self, node: fx.Node) -> float:
        group = [one for one, its in self._groups.items() if its is self._groups[node]]
        largest = max(1e-6, *(self._largest[one.name] for one in group))
        for one in group:
            if isinstance(norm := self._module(one), LocalResponseNorm):
                return Norm.scale(norm, largest)
        return largest / LARGEST[torch.uint8]

    # What becomes of it.

    def _convolve(self, conv: fx.Node, value: fx.Node) -> None:
        """Emit a convolution whose result, after its ReLU if it has one, is `value`."""
        source = conv.args[0]
        assert isinstance(source, fx.Node)  # noqa: S101 - a convolution has one input
        shape = self._shape(source)
        module, relu = self._modules[str(conv.target)], value is not conv
        if self._takes_bytes(conv):
            after = self._scale(value) if value in self._wanted else None
            exact = self._exact[str(conv.target)]
            new: nn.Module = ByteConv(
                cast("nn.Conv2d", exact),
                shape,
                self._scale(source),
                after,
                dtype=self._dtype,
                relu=relu,
            )
            place = self._floats if after is None else self._bytes
            place[value] = self._call(conv, new, self._bytes[source])
        else:
            new = PackedConv(cast("nn.Conv2d", module), shape, relu=relu)
            self._floats[value] = self._call(conv, new, self._floats[source])

    def _normalise(self, node: fx.Node, norm: LocalResponseNorm) -> None:
        (source,) = node.all_input_nodes
        scale = self._scale(node) if node in self._wanted else None
        new = Norm(norm, self._shape(source), self._dtype, scale)
        place = self._floats if scale is None else self._bytes
        place[node] = self._call(node, new, self._floats[source])

    def _pass(self, node: fx.Node) -> None:
        module = self._module(node)
        if isinstance(module, nn.MaxPool2d):
            (source,) = node.all_input_nodes
            self._bytes[node] = self._call(node, BytePool(module), self._bytes[source])
        else:
            self._bytes[node] = self._graph.node_copy(node, self._bytes.__getitem__)

    def _convert(self, node: fx.Node) -> None:
        """Emit the other form of a node's result, if somebody wants it too."""
        if node in self._wanted and node not in self._bytes:
            new: nn.Module = ToBytes(self._scale(node), self._dtype)
            self._bytes[node] = self._call(node, new, self._floats[node])
        elif node in self._bytes and not all(
            self._uses_bytes(user, self._wanted) for user in node.users
        ):
            new = ToFloats(self._scale(node), self._dtype)
            self._floats[node] = self._call(node, new, self._bytes[node])

    def _shape(self, node: fx.Node) -> list[int]:
        return [self._rows, *node.meta["tensor_meta"].shape[1:]]

    def _call(self, node: fx.Node, module: nn.Module, source: fx.Node) -> fx.Node:
        name = f"packed_{node.name}_{len(self._made)}"  # its own, though a module may be used twice
        self._made[name] = module
        return self._graph.call_module(name, (source,))
