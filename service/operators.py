"""What a packed network is made of: oneDNN's convolutions and poolings, in floats and in bytes.

A tensor in bytes is uint8 and has a scale: its values are the bytes times the scale, and none
is below zero, as after a ReLU.
"""

import torch
from torch import Tensor, nn

from service.networks.googlenet import LocalResponseNorm

LARGEST = {torch.uint8: 255, torch.int8: 127}


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


class ByteConv(nn.Module):
    """A convolution of bytes, with its ReLU if it has one, to bytes or to floats.

    Weights are rounded to int8, each output channel with a scale of its own. `shape` is that of
    its input, and `scale` its input's; `after` is the scale of its output, or nothing for
    floats of type `dtype`.
    """

    def __init__(  # noqa: PLR0913 - all that oneDNN has to know
        self,
        conv: nn.Conv2d,
        shape: list[int],
        scale: float,
        after: float | None,
        *,
        dtype: torch.dtype,
        relu: bool,
    ) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        self._scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / LARGEST[torch.int8]
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._where = (
            list(conv.stride),
            [int(side) for side in conv.padding],
            list(conv.dilation),
            conv.groups,
        )
        self._weight = torch.ops.onednn.qconv_prepack(
            (weight / self._scales[:, None, None, None]).round().to(torch.int8),
            *(self._scales, scale, 0),
            *(*self._where, shape),
        )
        self._bias = None if conv.bias is None else conv.bias.detach().float()
        self._scale, self._after = scale, after or 1.0
        self._dtype = dtype if after is None else None
        self._relu = "relu" if relu else "none"

    @staticmethod
    def takes(conv: nn.Conv2d) -> bool:
        """Tell whether a convolution has learned weights, and the plain form that gains."""
        return isinstance(conv.weight, nn.Parameter) and conv.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        """Do what the convolution and its ReLU did, on bytes."""
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(x, self._scale, 0),
            *(self._weight, self._scales, self._zeros, self._bias),
            *(*self._where, self._after, 0, self._dtype),
            *(self._relu, [], ""),
        )
        return result


class Norm(nn.Module):
    """Local response normalisation of floats not below zero, to floats or to bytes of a `scale`.

    x / (1 + a * sum) ** 0.75, computed as x * (g / a) ** 0.75 / (g / a + g * sum) ** 0.75, whose
    second divisor is one convolution of the squares. `shape` is that of the input.
    """

    # The g for which both g and g / a are bfloat16 to within 1e-5; any other would shift results.
    _GAIN = 232 / 2**23
    _MARGIN = 1.02  # bfloat16 rounds up by less

    def __init__(
        self, norm: LocalResponseNorm, shape: list[int], dtype: torch.dtype, scale: float | None
    ) -> None:
        super().__init__()
        ratio = self._GAIN * norm.size / norm.alpha
        weight = norm.neighbours.weight.float() * self._GAIN
        conv = nn.Conv2d(len(weight), len(weight), 1)
        conv.weight.data, conv.bias = weight, nn.Parameter(torch.full(weight.shape[:1], ratio))
        self._neighbours = PackedConv(conv.to(dtype), shape, relu=False)
        self._factor = ratio**0.75 / (scale or 1.0)
        self._in_bytes = scale is not None
        self._cuts_off = scale is not None and scale * LARGEST[torch.uint8] < norm.bound
        self._first = torch.tensor(0.5 if self._in_bytes else 0.0, dtype=dtype)

    @staticmethod
    def takes(dtype: torch.dtype) -> bool:
        """Tell whether squares fit a number format; float16 ends at 65504."""
        return dtype != torch.float16

    @classmethod
    def scale(cls, norm: LocalResponseNorm, largest: float) -> float:
        """Choose a scale of bytes for results of which `largest` was seen.

        If that costs less than a bit, one that no result is too large for, so that none has to
        be cut off.
        """
        bound = cls._MARGIN * norm.bound
        return float(bound if largest > bound / 2 else largest) / LARGEST[torch.uint8]

    def forward(self, x: Tensor) -> Tensor:
        """Do what the normalisation did."""
        root = self._neighbours(torch.square(x)).sqrt_()
        root.mul_(root.sqrt())
        result = torch.addcdiv(self._first, x, root, value=self._factor)
        if self._cuts_off:
            result.clamp_(max=LARGEST[torch.uint8])
        return _rounded_down(result) if self._in_bytes else result


class ToBytes(nn.Module):
    """Floats of 0 and above to the nearest bytes; what is beyond the largest becomes it."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self._units, self._half = 1 / scale, torch.tensor(0.5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Round half up."""
        units = torch.add(self._half, x, alpha=self._units)
        return _rounded_down(units.clamp_(max=LARGEST[torch.uint8]))


def _rounded_down(x: Tensor) -> Tensor:
    """Give bytes, by way of int16: twice as quick as from halves at once."""
    return x.to(torch.int16).to(torch.uint8)


class ToFloats(nn.Module):
    """Bytes to the values that they stand for."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self._scale, self._dtype = scale, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the scale."""
        return x.to(self._dtype).mul_(self._scale)


class BytePool(nn.Module):
    """Max pooling of bytes, whose scale it keeps."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        sides = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        self._where = [[_side(side)] * 2 for side in sides]
        self._rounds_up = pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """Do what the pooling did."""
        result: Tensor = torch.ops.quantized.max_pool2d(x, *self._where, self._rounds_up)
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
