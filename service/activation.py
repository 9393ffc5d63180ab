"""Class activation maps of views, on the device; `service.explanation` says what they are."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from service import weights
from service.forward import Normalise
from service.weights import Model

_POOL = 7  # places along the window of average pooling, in every network that has maps


class Activations(nn.Module):
    """Takes (N, side, side, 3) uint8 views and a class for each, (N,) int64.

    Gives the maps (N, h, w), the logits (N,) and the biases (N,), all float32: it explains, and
    need not be quick. For a model that has maps.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        network = model.network().to(device)
        last = cast("nn.Linear", network.get_submodule(weights.architecture(model.manifest).last))
        self.weight, self.bias = last.weight, last.bias  # (classes, C), (classes,)
        self.network = _with_features(network, str(model.maps))
        self.normalise = Normalise(model.manifest.preprocessing, torch.float32).to(device)

    def forward(self, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits = self.network(self.normalise(pixels))  # (N, C, h, w), (N, classes)
        maps = torch.einsum("nchw,nc->nhw", features, self.weight[classes])
        shares = _shares(*features.shape[2:]).to(maps.device)
        return maps * shares, logits.gather(1, classes[:, None])[:, 0], self.bias[classes]


class _Tracer(fx.Tracer):
    """Traces a network, and leaves one of its modules whole."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell that it is not to be looked into."""
        is_whole = module_qualified_name == self._whole
        return is_whole or super().is_leaf_module(m, module_qualified_name)


def _with_features(network: nn.Module, module: str) -> nn.Module:
    """Have a network give the output of one of its modules before its own."""
    graph = _Tracer(module).trace(network)
    (features,) = (node for node in graph.nodes if node.target == module)
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = ((features, *output.args),)
    return fx.GraphModule(network, graph)


def _shares(rows: int, columns: int) -> Tensor:
    """Give how often each place is in a window of pooling, beside the mean: (rows, columns).

    A view of 224 pixels has one window, and all are 1; the logits of a larger one are the mean
    over all windows, in more of which the places in the middle are.
    """
    often = torch.outer(_often(rows), _often(columns))
    return often / often.mean()


def _often(places: int) -> Tensor:
    starts = range(places - _POOL + 1)
    return torch.tensor(
        [float(sum(0 <= at - start < _POOL for start in starts)) for at in range(places)]
    )
