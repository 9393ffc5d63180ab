"""ZFNet as in figure 3 of "Visualizing and Understanding Convolutional Networks" (2013).

AlexNet with a first layer of 7x7 with stride 2. Its contrast normalisation is AlexNet's, as in
Caffe; pools round up, as the sizes in the figure do.
"""

from torch import nn

from service.engine.networks.googlenet import LocalResponseNorm
from service.engine.networks.windowed import Windowed

_SIDE = 6  # of the last map for an input of 224 pixels


def build(classes: int) -> nn.Module:
    """Build the network with initial weights."""
    features = nn.Sequential(
        *_layer(nn.Conv2d(3, 96, 7, stride=2, padding=1)),  # 110x110
        *(_halve(), LocalResponseNorm(96)),  # 55x55
        *_layer(nn.Conv2d(96, 256, 5, stride=2)),  # 26x26
        *(_halve(), LocalResponseNorm(256)),  # 13x13
        *_layer(nn.Conv2d(256, 384, 3, padding=1)),
        *_layer(nn.Conv2d(384, 384, 3, padding=1)),
        *_layer(nn.Conv2d(384, 256, 3, padding=1)),
        _halve(),  # 6x6
    )
    classifier = nn.Sequential(
        *(*_layer(nn.Linear(256 * _SIDE * _SIDE, 4096)), nn.Dropout(0.5)),
        *(*_layer(nn.Linear(4096, 4096)), nn.Dropout(0.5)),
        nn.Linear(4096, classes),
    )
    return Windowed(features, classifier, _SIDE)


def _layer(weighted: nn.Module) -> tuple[nn.Module, nn.Module]:
    return weighted, nn.ReLU()


def _halve() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
