"""Class activation maps of views, on the device; `service.explanation` says what they are."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from service import folding, runtime, weights
from service.forward import Normalise
from service.networks import ending
from service.packed import Shape
from service.weights import Model


class Activations(nn.Module):
    """Takes (N, side, side, 3) uint8 views and a class for each, (N,) int64.

    Gives the maps (N, h, w), the logits (N,) and the biases (N,), all float32: their mean and the
    bias are to be the logit. For a model that has maps.
    """

    def __init__(self, model: Model, device: torch.device, shapes: Sequence[Shape]) -> None:
        super().__init__()
        network = model.network()
        last = cast("nn.Linear", network.get_submodule(weights.architecture(model.manifest).last))
        self.weight = last.weight.to(device)  # (classes, C)
        self.bias = last.bias.to(device)  # (classes,)
        whole, self.pool = _with_features(network)
        self.network = runtime.place(whole, device, torch.float32, shapes, None)
        self.normalise = Normalise(model.manifest.preprocessing, torch.float32).to(device)

    def forward(self, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits = self.network(self.normalise(pixels))  # (N, C, h, w), (N, classes)
        maps = torch.einsum("nchw,nc->nhw", features, self.weight[classes])
        shares = _shares(features.shape[2], features.shape[3], self.pool).to(maps.device)
        return maps * shares, logits.gather(1, classes[:, None])[:, 0], self.bias[classes]


def _with_features(network: nn.Module) -> tuple[nn.Module, int | None]:
    """Have a network give the map that its logits come from before them; and pooling's window."""
    whole = folding.traced(network)
    found = ending.find(network, whole.graph)
    assert found is not None  # noqa: S101 - it has maps; tells mypy
    (output,) = (node for node in whole.graph.nodes if node.op == "output")
    output.args = ((found.features, *output.args),)
    whole.recompile()
    return whole, found.window


def _shares(rows: int, columns: int, window: int | None) -> Tensor:
    """Give how often each place is in a window of pooling, beside the mean: (rows, columns).

    Where there is one window, as for a view of 224 pixels, all are 1; the logits of a larger one
    are the mean over all windows, in more of which the places in the middle are.
    """
    if window is None:
        return torch.ones(rows, columns)
    often = torch.outer(_often(rows, window), _often(columns, window))
    return often / often.mean()


def _often(places: int, window: int) -> Tensor:
    starts = range(places - window + 1)
    return torch.tensor(
        [float(sum(0 <= at - start < window for start in starts)) for at in range(places)]
    )
