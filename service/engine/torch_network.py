"""Networks with preprocessing and softmax: views to probabilities, in PyTorch."""

from typing import cast

import torch
from torch import Tensor, nn

from service.engine import torch_device, weights
from service.engine.class_activation import Classifier
from service.engine.networks import classifier_head
from service.engine.weights import Model
from service.models.manifest import Preprocessing


class Normalise(nn.Module):
    """Normalization of RGB pixels, uint8 or float32, as a network takes them.

    Takes (N, side, side, 3), gives (N, 3, side, side), channels-last in memory.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.is_bgr = preprocessing.channels == "BGR"
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("scale", torch.tensor(preprocessing.scale))

    def forward(self, pixels: Tensor) -> Tensor:
        channels = pixels.flip(-1) if self.is_bgr else pixels
        x = ((channels.float() - self.mean) * self.scale).to(self.dtype)
        return x.permute(0, 3, 1, 2)


class Probabilities(nn.Module):
    """Computes (N, classes) float32 from (N, side, side, 3) RGB, uint8 or float32.

    And the features that the last layer is applied to, (N, channels), in the network's number
    format; of networks without class activation maps, the logits.
    """

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        network = model.network()
        last: nn.Module = nn.Identity()
        if model.explains:
            name = weights.architecture(model.manifest).last
            last = network.get_submodule(name)
            network.set_submodule(name, nn.Identity())
        self.network = torch_device.place(network, device, dtype)
        self.last = last.to(device, dtype)
        self.normalise = Normalise(model.manifest.preprocessing, dtype).to(device)
        self.temperature = model.temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.network(self.normalise(pixels))
        logits = self.last(features)
        return (logits.float() / self.temperature).softmax(1), features


class Features(nn.Module):
    """Computes logits, (N, classes), and features, (N, C, h, w), in float32, for maps."""

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        network = model.network()
        last = cast("nn.Linear", network.get_submodule(weights.architecture(model.manifest).last))
        whole, features = classifier_head.with_features(network)
        self.classifier = Classifier(
            last.weight.detach().numpy(), last.bias.detach().numpy(), features.window
        )
        self.network = torch_device.place(whole, device, torch.float32)
        self.normalise = Normalise(model.manifest.preprocessing, torch.float32).to(device)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.network(self.normalise(pixels))
        return logits, features
