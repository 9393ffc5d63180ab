"""Xception as in figure 5 of "Xception: Deep Learning with Depthwise Separable Convolutions".

Chollet 2016, arXiv 1610.02357; published for 299x299, works on any size.
"""

from torch import Tensor, nn

WIDE = 728  # channels of the middle flow


class Xception(nn.Module):
    """Takes float (N, 3, H, W); returns logits (N, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.entry = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, bias=False), _norm(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, bias=False), _norm(64), nn.ReLU()),
            Shrinking(64, 128, 128, activated=False),
            Shrinking(128, 256, 256),
            Shrinking(256, WIDE, WIDE),
        )
        self.middle = nn.Sequential(*(Residual() for _ in range(8)))
        self.exit = nn.Sequential(
            Shrinking(WIDE, WIDE, 1024),
            *(*_separable(1024, 1536), nn.ReLU()),
            *(*_separable(1536, 2048), nn.ReLU()),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.exit(self.middle(self.entry(x)))  # (N, 2048, 7, 7)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class Shrinking(nn.Module):
    """Two separable convolutions and a pool, plus a 1x1 convolution with stride 2."""

    def __init__(self, channels: int, inner: int, out: int, *, activated: bool = True) -> None:
        super().__init__()
        self.beside = nn.Sequential(nn.Conv2d(channels, out, 1, stride=2, bias=False), _norm(out))
        self.body = nn.Sequential(
            *([nn.ReLU()] if activated else []),
            *(*_separable(channels, inner), nn.ReLU()),
            *_separable(inner, out),
            nn.MaxPool2d(3, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, channels, H, W) -> (N, out, H / 2, W / 2)
        result: Tensor = self.body(x) + self.beside(x)
        return result


class Residual(nn.Module):
    """Three separable convolutions, added to their input."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.ReLU(), *_separable(WIDE, WIDE)) for _ in range(3)]
        self.body = nn.Sequential(*(module for layer in layers for module in layer))

    def forward(self, x: Tensor) -> Tensor:  # (N, WIDE, H, W) -> the same
        result: Tensor = self.body(x) + x
        return result


def _separable(channels: int, out: int) -> tuple[nn.Module, ...]:
    """Make a depthwise 3x3 convolution and a pointwise 1x1 convolution, with batch norm."""
    return (
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
        _norm(out),
    )


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)
