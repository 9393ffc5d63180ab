"""A network rewritten for the CPU, for every batch size that it will meet.

What PyTorch's compiler would make of it, without a compiler and in milliseconds:

- each convolution with the ReLU that follows it is one call of oneDNN, on weights laid out for
  the processor (its matrix units included) and for the very shape it will be given;
- batch norm is folded into the convolution before it;
- max pooling is a maximum of shifted slices, without the indices that only training needs.
"""

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization
from torch.fx.passes.shape_prop import ShapeProp

_RELUS = (F.relu, torch.relu)
_ROOTS = ("sqrt", "rsqrt")  # their results are never below zero
_KEEPING = (torch.cat, operator.mul)  # nor are theirs, if what they are given is not


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


def pack(network: nn.Module, dtype: torch.dtype, shapes: Sequence[Shape]) -> Packed:
    """Take over a network in evaluation mode; what is neither convolution nor pool stays."""
    traced = fx.GraphModule(network, _Tracer().trace(network))
    folded = cast("fx.GraphModule", optimization.fuse(traced, no_trace=True).to(dtype))
    graphs = {}
    for side in {shape.side for shape in shapes}:
        with torch.inference_mode():
            ShapeProp(folded).propagate(torch.zeros((1, 3, side, side), dtype=dtype))
        for shape in shapes:
            if shape.side == side:
                graphs[shape] = _rewritten(folded, shape.rows)
    return Packed(graphs)


class _Tracer(fx.Tracer):
    """Takes every convolution as a whole, whoever's class it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _rewritten(network: fx.GraphModule, rows: int) -> fx.GraphModule:
    modules = dict(network.named_modules())
    made: dict[str, nn.Module] = {}
    graph = copy.deepcopy(network.graph)
    for node in list(graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            follower = _relu_after(node)
            shape = [rows, *node.args[0].meta["tensor_meta"].shape[1:]]
            new: nn.Module = PackedConv(module, shape, relu=follower is not None)
            if follower is not None:
                follower.replace_all_uses_with(node)
                graph.erase_node(follower)
        elif isinstance(module, nn.MaxPool2d) and MaxPool.takes(module):
            new = MaxPool(module, positive=_is_positive(node.args[0], made))
        else:
            continue
        node.target = f"packed_{node.name}"  # its own, though the network may use one twice
        made[node.target] = new
    rest = {**dict(network.named_parameters()), **dict(network.named_buffers()), **modules}
    return fx.GraphModule({**rest, **made}, graph)


def _relu_after(node: fx.Node) -> fx.Node | None:
    """Find the ReLU that is the only one to use a node's result."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op == "call_function" and user.target in _RELUS else None


def _is_positive(node: fx.Node, made: Mapping[str, nn.Module]) -> bool:
    """Prove, if it is easy, that a node's result is nowhere below zero."""
    if node.op == "call_module":
        return bool(getattr(made.get(str(node.target)), "positive", False))
    if node.target in _ROOTS:
        return True
    return node.target in _KEEPING and all(
        _is_positive(before, made) for before in node.all_input_nodes
    )


class PackedConv(nn.Module):
    """A convolution in oneDNN's own layout for one shape, with its ReLU if it has one.

    `shape` is that of its input: rows, channels, height, width.
    """

    def __init__(self, conv: nn.Conv2d, shape: list[int], *, relu: bool) -> None:
        super().__init__()
        self.positive = relu
        self._where = (
            [int(side) for side in conv.padding],
            list(conv.stride),
            list(conv.dilation),
            conv.groups,
        )
        # The operators are those that PyTorch's own compiler (Inductor) calls.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001
            conv.weight.detach(), *self._where, shape
        )
        self._bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Do what the convolution and its ReLU did."""
        after = "relu" if self.positive else "none"
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
            x, self._weight, self._bias, *self._where, after, [], ""
        )
        return result


class MaxPool(nn.Module):
    """Max pooling without indices: first down the columns, then along the rows."""

    @staticmethod
    def takes(pool: nn.MaxPool2d) -> bool:
        """Tell whether every window of a pool has its unpadded first pixel in the picture."""
        padding, kernel = _side(pool.padding), _side(pool.kernel_size)
        return not padding or (not pool.ceil_mode and 2 * padding < kernel)

    def __init__(self, pool: nn.MaxPool2d, *, positive: bool) -> None:
        super().__init__()
        self.positive = positive
        self._kernel, self._stride = _side(pool.kernel_size), _side(pool.stride)
        self._padding, self._rounds_up = _side(pool.padding), pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """Do what the pooling did."""
        # The bits of positive halves are in order as integers, which are quicker to compare.
        integers = self.positive and x.dtype.itemsize == torch.int16.itemsize
        y = x.view(torch.int16) if integers else x
        for dim in (2, 3):
            y = self._along(y, dim)
        return y.view(x.dtype)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        kernel, stride, padding = self._kernel, self._stride, self._padding
        length = x.shape[dim]
        room = length + 2 * padding - kernel
        outputs = (-(-room // stride) if self._rounds_up else room // stride) + 1
        if (outputs - 1) * stride >= length + padding:
            outputs -= 1  # a window may not begin behind the end
        # Shift by shift, beginning with the one that is in every window.
        largest = _every(x, dim, 0, stride, outputs).clone(memory_format=torch.channels_last)
        for shift in range(-padding, kernel - padding):
            first, end = (
                max(0, -(shift // stride)),
                min(outputs, (length - 1 - shift) // stride + 1),
            )
            if shift and first < end:
                part = largest.narrow(dim, first, end - first)
                picked = _every(x, dim, first * stride + shift, stride, end - first)
                torch.maximum(part, picked, out=part)
        return largest


def _side(value: int | tuple[int, ...]) -> int:
    """Give the side of a square window, however it was said."""
    return value if isinstance(value, int) else value[0]


def _every(x: Tensor, dim: int, start: int, stride: int, count: int) -> Tensor:
    """Take `count` slices across a dimension, `stride` apart."""
    return x[(slice(None),) * dim + (slice(start, start + (count - 1) * stride + 1, stride),)]
