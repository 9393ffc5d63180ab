"""LeNet-5 of "Gradient-Based Learning Applied to Document Recognition" (LeCun et al. 1998).

60,000 parameters as published, plus the last layer's: the paper compares 84 values with bitmaps of
the ten digits; here a linear layer computes the logits, for any labels.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor, nn

SHRUNK = 7  # factor from 224 pixels to the paper's 32

# Table I: which maps of S2 each map of C3 sees.
TABLE_1 = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)


class Subsampling(nn.Module):
    """Sum of 2x2 neighbours times a coefficient plus a bias, both trainable, by map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((maps, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, maps, H, W) -> (N, maps, H / 2, W / 2)
        return F.avg_pool2d(x, 2) * (4 * self.weight) + self.bias


class Partial(nn.Module):
    """A 5x5 convolution in which each output map is connected to the inputs in a table."""

    where: Tensor

    def __init__(self, table: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.maps, self.seen = len(table), 1 + max(max(row) for row in table)
        pairs = [number * self.seen + seen for number, row in enumerate(table) for seen in row]
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(self.maps))
        self.register_buffer("where", torch.tensor(pairs), persistent=False)
        nn.init.normal_(self.weight, std=(self.maps / self.weight.numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (N, seen, H, W) -> (N, maps, H - 4, W - 4)
        zeros = self.weight.new_zeros(self.maps * self.seen, 5, 5)
        weight = zeros.index_copy(0, self.where, self.weight)
        return F.conv2d(x, weight.view(self.maps, self.seen, 5, 5), self.bias)


class LeNet5(nn.Module):
    """Takes float (N, 3, H, W), H and W at least 224; returns logits (N, classes).

    Input is converted to grey and shrunk 7 times. As in the paper, a larger image gives a map of
    the outputs for each 32x32 window; the logits are its mean.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = Partial(TABLE_1)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x.mean(1, keepdim=True), SHRUNK)  # (N, 1, 32, 32)
        x = _squashed(self.s2(_squashed(self.c1(x))))  # (N, 6, 14, 14)
        x = _squashed(self.s4(_squashed(self.c3(x))))  # (N, 16, 5, 5)
        x = _squashed(self.c5(x))  # (N, 120, 1, 1)
        x = _squashed(self.f6(x.permute(0, 2, 3, 1)))  # (N, 1, 1, 84)
        logits: Tensor = self.output(x)
        return logits.mean((1, 2))


def _squashed(x: Tensor) -> Tensor:
    """Apply the scaled tanh of the paper's appendix A: 1 to 1, limited to 1.7159."""
    return 1.7159 * torch.tanh(2 / 3 * x)
