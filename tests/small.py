"""Small models: one with simple arithmetic, and real networks of a few filters in a store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from conftest import ROOT
from test_networks import lively
from test_networks import noise as tensor
from torch import Tensor, nn

from service.engine import converter, networks, openvino_executor, weights
from service.engine.weights import Model
from service.imaging.crops import CROP
from service.models.manifest import Calibration, Label, Manifest, Preprocessing
from service.models.store import Store

CLASSES = ("blue", "green", "red")
PREPROCESSING = Preprocessing(
    channels="BGR", mean=(123, 117, 104), scale=(0.02, 0.02, 0.02), resize="warp", side=256
)


class Colours(nn.Module):
    """Logits are a tenth of the preprocessed view's channel averages."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3)
        return 0.1 * x.mean((2, 3))


class Toy(Model):
    """A model with `Colours` as its network."""

    explains = False

    def network(self) -> nn.Module:
        """Build it."""
        return Colours()


def toy(kind: type[Model] = Toy) -> Model:
    """Make a toy with the preprocessing of the BVLC weights: BGR, minus a mean."""
    described = Store(ROOT, ROOT / "model_store").manifest("bvlc_googlenet")
    labels = tuple(Label(name=name, wnid=None) for name in CLASSES)
    return kind("toy", described, labels, "0" * 64, {})


def preprocessed(model: Model, **changes: object) -> Model:
    """Change a toy's preprocessing."""
    changed = model.manifest.preprocessing.model_copy(update=changes)
    return replace(model, manifest=model.manifest.model_copy(update={"preprocessing": changed}))


def calibrated(model: Model, temperature: float, sha256: str) -> Model:
    """Set a toy's temperature for the weights with this SHA-256."""
    fitted = Calibration(temperature=temperature, sha256=sha256, images=1, error=(0.1, 0.1))
    return replace(model, manifest=model.manifest.model_copy(update={"calibration": fitted}))


def softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probabilities of logits, (classes,)."""
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum()


def converted(model: Model) -> openvino_executor.Model:
    """Convert a model without maps, as if from a store."""
    made = converter.make(model)
    return openvino_executor.Model(
        model.name, model.manifest, model.labels, model.sha256, made, made, None
    )


def smooth(rows: int, seed: int = 0) -> Tensor:
    """Make inputs of a network, (N, 3, 224, 224), as smooth as photos."""
    coarse = 2 * tensor(rows, 3, 7, 7, seed=seed)
    return nn.functional.interpolate(coarse, size=CROP, mode="bicubic")


def save(  # noqa: PLR0913 - what tests vary
    store: Store,
    name: str = "small",
    *,
    architecture: str = "googlenet",
    width: float = 0.05,
    seed: int = 0,
    preprocessing: Preprocessing = PREPROCESSING,
    labels: tuple[str, ...] = CLASSES,
) -> Model:
    """Put a model of three classes with random weights into a store; it is not converted yet."""
    described = Manifest(
        architecture=architecture,
        width=width,
        version="1",
        description="",
        licence="",
        classes=len(labels),
        labels="labels.tsv",
        preprocessing=preprocessing,
    )
    torch.manual_seed(seed)
    chosen = networks.architecture(architecture)
    network = lively(chosen.build(len(labels), width), seed)
    with torch.no_grad():
        _settle(network, smooth(4))
        # So that no class dominates:
        last = network.get_submodule(chosen.last).get_parameter("weight")
        last.div_(network(smooth(4)).std())
    with store.locked(name):
        store.describe(name, described, labels)
        weights.save(store, name, network.state_dict(), source="random")
    return weights.load(store, name)


def _settle(network: nn.Module, x: Tensor) -> None:
    """Give batch norms the statistics of an image; else rounding errors grow in deep networks."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]  # cumulative average
        norm.train()
    if norms:
        network(x)
        network.eval()


def stored(root: Path, architecture: str = "googlenet", width: float = 1.0) -> Store:
    """A store with one such model, `small`."""
    store = Store(root, root / "nothing")
    save(store, architecture=architecture, width=width)
    return store
