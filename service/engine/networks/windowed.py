"""Dense evaluation of networks that end in fully connected layers, on larger images."""

from torch import Tensor, nn


class Windowed(nn.Module):
    """Runs the classifier on every window of the last map and averages the logits.

    This is VGG's dense evaluation (Simonyan and Zisserman 2014, section 3.2): the first fully
    connected layer as a convolution over the map of a 224-pixel image, the others as 1x1
    convolutions, and the mean of the class map. An image of 224 pixels has one window. `side` is
    the window's side; `classifier` takes (..., C * side * side).
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, side: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.side = side

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, classes)
        x = self.features(x)  # (N, C, h, w)
        windows = x.unfold(2, self.side, 1).unfold(3, self.side, 1).permute(0, 2, 3, 1, 4, 5)
        logits: Tensor = self.classifier(windows.flatten(3))  # (N, rows, columns, classes)
        return logits.mean((1, 2))
