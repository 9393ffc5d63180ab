"""GoogLeNet as in table 1 of "Going Deeper with Convolutions" (arXiv 1409.4842).

With local response normalisation, 5x5 convolutions and biases, without batch norm. Pools round up
as Caffe's do, which gives table 1's sizes; the BVLC weights were trained so.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Filters:
    """One row of table 1: the number of filters in each part of an inception module."""

    conv_1x1: int
    reduce_3x3: int
    conv_3x3: int
    reduce_5x5: int
    conv_5x5: int
    pool_proj: int

    @property
    def out(self) -> int:
        """Channels of the module's output."""
        return self.conv_1x1 + self.conv_3x3 + self.conv_5x5 + self.pool_proj

    def scaled(self, factor: float) -> "Filters":
        """Scale all numbers by a factor."""
        return Filters(*(_scaled(number, factor) for number in astuple(self)))


TABLE_1: Mapping[str, Filters] = {
    "3a": Filters(64, 96, 128, 16, 32, 32),
    "3b": Filters(128, 128, 192, 32, 96, 64),
    "4a": Filters(192, 96, 208, 16, 48, 64),
    "4b": Filters(160, 112, 224, 24, 64, 64),
    "4c": Filters(128, 128, 256, 24, 64, 64),
    "4d": Filters(112, 144, 288, 32, 64, 64),
    "4e": Filters(256, 160, 320, 32, 128, 128),
    "5a": Filters(256, 160, 320, 32, 128, 128),
    "5b": Filters(384, 192, 384, 48, 128, 128),
}


class Neighbours(nn.Conv2d):
    """One plus the sum of five neighbouring channels, as a fixed 1x1 convolution.

    Several times faster than a sum of five shifted slices. Not part of the weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)
        del self.weight, self.bias
        index = torch.arange(channels)
        near = (index[:, None] - index).abs() <= LocalResponseNorm.size // 2
        self.register_buffer("weight", near[:, :, None, None].float(), persistent=False)
        self.register_buffer("bias", torch.ones(channels), persistent=False)


class LocalResponseNorm(nn.Module):
    """Divide by (1 + 1e-4 * mean of the squares of five neighbouring channels) ** 0.75.

    Equal to `torch.nn.LocalResponseNorm(5)` to 2e-6, which is slow on a CPU and missing for
    bfloat16.
    """

    size, alpha, beta = 5, 1e-4, 0.75

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.neighbours = Neighbours(channels)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> the same
        scaled = (
            x * (self.alpha / self.size) ** 0.5
        )  # before squaring: the maximum of float16 is 65504
        root: Tensor = self.neighbours(torch.square(scaled)).sqrt()
        return x / (root * root.sqrt())  # ** 0.75 = ** 0.5 * ** 0.25


class Inception(nn.Module):
    """An inception module: four branches, concatenated by channel."""

    def __init__(self, channels: int, filters: Filters) -> None:
        super().__init__()
        self.conv_1x1 = nn.Conv2d(channels, filters.conv_1x1, 1)
        self.reduce_3x3 = nn.Conv2d(channels, filters.reduce_3x3, 1)
        self.conv_3x3 = nn.Conv2d(filters.reduce_3x3, filters.conv_3x3, 3, padding=1)
        self.reduce_5x5 = nn.Conv2d(channels, filters.reduce_5x5, 1)
        self.conv_5x5 = nn.Conv2d(filters.reduce_5x5, filters.conv_5x5, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = nn.Conv2d(channels, filters.pool_proj, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, filters.out, H, W)
        branches = (
            F.relu(self.conv_1x1(x)),
            F.relu(self.conv_3x3(F.relu(self.reduce_3x3(x)))),
            F.relu(self.conv_5x5(F.relu(self.reduce_5x5(x)))),
            F.relu(self.pool_proj(self.pool(x))),
        )
        return torch.cat(branches, dim=1)


class Auxiliary(nn.Module):
    """An auxiliary classifier, for training only; its loss has weight 0.3."""

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()
        filters, hidden = _scaled(128, width), _scaled(1024, width)
        self.conv = nn.Conv2d(channels, filters, 1)
        self.hidden = nn.Linear(filters * 4 * 4, hidden)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, 14, 14) -> (N, classes)
        x = F.relu(self.conv(F.avg_pool2d(x, 5, stride=3)))
        x = F.relu(self.hidden(x.flatten(1)))
        return self.linear(self.dropout(x))  # type: ignore[no-any-return]  # nn.Module calls are untyped


class GoogLeNet(nn.Module):
    """The network of table 1; `auxiliary` adds the two classifiers for training.

    Takes float (N, 3, H, W), mean subtracted, H and W at least 223; returns logits (N, classes).
    Images larger than 224 are evaluated densely as in VGG: pooling and the last layer are linear,
    so the last layer on the mean of all pooled windows is the mean of the class map. In training
    mode with auxiliary classifiers returns (logits, logits on 4a, logits on 4d), for 224x224 only.

    Every layer has `width` times the filters of table 1.
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, *, auxiliary: bool = True) -> None:
        super().__init__()
        first, second = _scaled(64, width), _scaled(192, width)
        self.halve = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3)
        self.reduce2 = nn.Conv2d(first, first, 1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.norm1 = LocalResponseNorm(first)
        self.norm2 = LocalResponseNorm(second)
        table = {name: filters.scaled(width) for name, filters in TABLE_1.items()}
        channels = second
        self.inception = nn.ModuleDict()
        for name, filters in table.items():
            self.inception[name] = Inception(channels, filters)
            channels = filters.out
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(channels, classes)
        self.auxiliary = auxiliary
        if auxiliary:
            self.aux_4a = Auxiliary(table["4a"].out, classes, width)
            self.aux_4d = Auxiliary(table["4d"].out, classes, width)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.halve(F.relu(self.conv1(x)))  # (N, 64, 56, 56)
        x = F.relu(self.reduce2(self.norm1(x)))
        x = self.halve(self.norm2(F.relu(self.conv2(x))))  # (N, 192, 28, 28)
        inception = self.inception
        x = self.halve(inception["3b"](inception["3a"](x)))  # (N, 480, 14, 14)
        x_4a = inception["4a"](x)
        x_4d = inception["4d"](inception["4c"](inception["4b"](x_4a)))
        x = self.halve(inception["4e"](x_4d))  # (N, 832, 7, 7)
        x = inception["5b"](inception["5a"](x))
        x = F.avg_pool2d(x, 7, stride=1).mean((2, 3))  # (N, 1024)
        logits: Tensor = self.linear(self.dropout(x))
        if self.training and self.auxiliary:
            return logits, self.aux_4a(x_4a), self.aux_4d(x_4d)
        return logits


def _scaled(number: int, factor: float) -> int:
    return max(1, round(number * factor))


def caffe_layers() -> dict[str, str]:
    """Map the layers of the BVLC prototxt to the modules here."""
    names = {
        "conv1/7x7_s2": "conv1",
        "conv2/3x3_reduce": "reduce2",
        "conv2/3x3": "conv2",
        "loss3/classifier": "linear",
    }
    parts = {
        "1x1": "conv_1x1",
        "3x3_reduce": "reduce_3x3",
        "3x3": "conv_3x3",
        "5x5_reduce": "reduce_5x5",
        "5x5": "conv_5x5",
        "pool_proj": "pool_proj",
    }
    for name in TABLE_1:
        for layer, module in parts.items():
            names[f"inception_{name}/{layer}"] = f"inception.{name}.{module}"
    return names
