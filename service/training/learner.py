"""A network in training, and the moving average of its weights."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from service import cpu_info
from service.engine import networks
from service.engine.torch_device import PRECISIONS
from service.errors import ModelError
from service.training.loader import Batch
from service.training.process_group import ProcessGroup

MOMENTUM = 0.9  # section 6 of the paper
AUXILIARY = 0.3  # the weight of an auxiliary classifier's loss: section 5
NEW_LAYERS = 10  # times the learning rate, of new layers beside others (Caffe's lr_mult)
DECAY, DECAY_EPOCHS = 0.96, 8  # the learning rate's factor every 8 epochs: section 6

_LEAST_DEVIATION = 1e-3  # of a channel's output; below, it is constant


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of a step; see `service.training.options` for each."""

    rate: float
    decay: float
    average: float
    seed: int
    new: tuple[str, ...] = ()
    """Name prefixes of new parameters in a network with a start model."""


def rate(first: float, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    return float(first * DECAY ** (epoch // DECAY_EPOCHS))


def number_format(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format that layers compute in; weights are kept in float32.

    `auto` is half precision where the device supports it. Raises `ModelError` for int8.
    """
    if precision == "int8":
        raise ModelError("int8 cannot be trained in; see models quantize")
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_info.multiply_bfloat16() else torch.float32


def initialise(network: nn.Module, dropout: float = 1.0) -> None:
    """Initialise the weights (He et al. 2015); multiply the published dropout by `dropout`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(module.weight, nn.Parameter):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Dropout):
            module.p *= dropout


def has_norm(network: nn.Module) -> bool:
    """Return whether a network has batch or layer norm."""
    return any(isinstance(module, nn.BatchNorm2d | nn.LayerNorm) for module in network.modules())


@torch.no_grad()
def initialise_from_data(network: nn.Module, x: Tensor) -> None:
    """Scale each convolution to mean 0 and deviation 1, by channel, for the input `x`.

    Without batch norm, a deep network with random weights gives nearly the same output for all
    images, and learns slowly at first (Kraehenbuehl et al. 2015, arXiv 1511.06856).
    """

    def correct(module: nn.Module, _: object, out: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(out, (0, 2, 3), keepdim=True)
        deviation = deviation.where(deviation > _LEAST_DEVIATION, 1)
        module.get_parameter("weight").div_(deviation.view(-1, 1, 1, 1))
        module.get_parameter("bias").sub_(mean.flatten()).div_(deviation.flatten())
        return (out - mean) / deviation

    hooks = [
        module.register_forward_hook(correct)
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and isinstance(module.weight, nn.Parameter)
    ]
    network.train()(x)
    for hook in hooks:
        hook.remove()


def freeze(network: nn.Module, last: str) -> None:
    """Freeze the parameters up to and including the module `last`.

    Raises `ModelError` if there is no such module, or if nothing would be left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    frozen = [index for index, name in enumerate(names) if name.startswith(f"{last}.")]
    if not frozen or frozen[-1] + 1 == len(names):
        modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
        raise ModelError(f"cannot freeze up to {last!r}; modules are {', '.join(modules)}")
    for parameter in [*network.parameters()][: frozen[-1] + 1]:
        parameter.requires_grad = False


class Learner:
    """Stochastic gradient descent with averaged weights (Polyak)."""

    def __init__(
        self,
        network: nn.Module,
        normalise: nn.Module,
        recipe: Recipe,
        dtype: torch.dtype,
        group: ProcessGroup,
    ) -> None:
        self._group = group
        self._device = group.device
        self._recipe = recipe
        self._dtype = dtype
        self._normalise = normalise.to(group.device)
        self._network: nn.Module = network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the format
        self._frozen = [module for module in network.modules() if _is_frozen(module)]
        self._distributed = network if group.size == 1 else DistributedDataParallel(network)
        self._optimiser = torch.optim.SGD(
            _parameter_groups(network, recipe.new),
            lr=recipe.rate,
            momentum=MOMENTUM,
            weight_decay=recipe.decay,
        )
        self._averaged = AveragedModel(network, avg_fn=self._average)
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16)

    def step(self, batch: Batch, epoch: int, step: int) -> float:
        """Train on a batch and return its loss; random numbers depend on the step alone."""
        torch.manual_seed(hash((self._recipe.seed, epoch, step, self._group.rank)))
        for parameters in self._optimiser.param_groups:
            parameters["lr"] = parameters["times"] * rate(self._recipe.rate, epoch)
        self._network.train()
        for module in self._frozen:
            module.eval()  # keeps its running statistics, too
        with self._precision():
            outputs = self._distributed(self._pixels(batch))
        targets = batch.targets.to(self._device)
        loss, *auxiliary = [F.cross_entropy(x.float(), targets) for x in _outputs(outputs)]
        self._optimiser.zero_grad()
        self._scaler.scale(loss + AUXILIARY * sum(auxiliary)).backward()  # type: ignore[no-untyped-call]  # torch's stub
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._averaged.update_parameters(self._network)
        return loss.item()

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Return a batch's logits by the averaged weights: (N, classes) float32."""
        self._averaged.eval()
        with self._precision():
            logits: Tensor = self._averaged(self._pixels(batch))
        return logits.float().cpu()

    def weights(self) -> dict[str, Tensor]:
        """Copy the averaged weights."""
        state = self._averaged.module.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load_averaged(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the averaged weights."""
        networks.fill(self._averaged.module, weights)

    def state(self) -> dict[str, Any]:
        """Return the state that the next step depends on."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self._network,
            "averaged": self._averaged,
            "optimiser": self._optimiser,
            "scaler": self._scaler,
        }

    def _average(self, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """Weight the current values more in the first steps."""
        kept = min(self._recipe.average, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(averaged, current, 1 - kept)

    def _pixels(self, batch: Batch) -> Tensor:
        pixels: Tensor = self._normalise(batch.pixels.to(self._device, non_blocking=True))
        return pixels

    def _precision(self) -> torch.autocast:
        mixed = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype if mixed else None, enabled=mixed)


def _parameter_groups(network: nn.Module, new: tuple[str, ...]) -> list[dict[str, Any]]:
    """Group the trainable parameters by their factor of the learning rate."""
    groups: dict[int, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[NEW_LAYERS if name.startswith(new) else 1].append(parameter)
    return [{"params": parameters, "times": times} for times, parameters in groups.items()]


def _is_frozen(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False)]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _outputs(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs
