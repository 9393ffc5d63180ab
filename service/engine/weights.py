"""A model's weights: tensors that fit its architecture, out of the store and into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from service.engine import networks
from service.engine.formats import caffemodel, checkpoint, pickled, safetensor
from service.engine.formats.checkpoint import Say
from service.engine.networks import Architecture
from service.engine.networks.unfilled import Unfilled
from service.errors import BadWeights, ModelError
from service.imaging import crops
from service.models.download import Progress
from service.models.manifest import Label, Manifest
from service.models.store import WEIGHTS, Store

_CAFFE, _SAFE = ".caffemodel", ".safetensors"

# What networks count or look up by themselves: training steps, which older files do not count,
# and the tables of attention in windows.
_OWN = ("num_batches_tracked", "relative_position_index")


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from the store, ready to be put on a device."""

    name: str
    manifest: Manifest
    labels: tuple[Label, ...]
    sha256: str
    state: Mapping[str, Tensor]

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return self.manifest.temperature(self.sha256)

    @property
    def explains(self) -> bool:
        """Has its network class activation maps."""
        return architecture(self.manifest).explains

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of the views that its network takes."""
        return _sides(self.manifest.architecture)

    def network(self) -> torch.nn.Module:
        """Build the network with its weights."""
        with Unfilled():
            network = build(self.manifest)
        networks.fill(network, self.state)
        return network.eval()


def load(store: Store, name: str) -> Model:
    """Read a model, checking its weights against the record and its architecture.

    Raises `MissingWeights` with what to do about it, `BadWeights`, or `ModelError`.
    """
    described = store.manifest(name)
    data, digest = store.read(name)  # read once: what is checked is what is served
    state = _fitting(safetensor.parse(data, WEIGHTS), described, WEIGHTS)
    return Model(name, described, store.labels(name), digest, state)


def install(
    store: Store, name: str, file: Path, *, source: str, say: Say = checkpoint.ignore
) -> str:
    """Make a weights file the model's weights, and give their SHA-256.

    Reads a file of Caffe's, PyTorch's or safetensors', checks it against the architecture, and
    only then, in one step, makes it visible. Raises `BadWeights`. `say` is called with what had
    to be undone of a checkpoint of training.
    """
    described = store.manifest(name)
    if not file.is_file():
        raise ModelError(f"there is no file {file}")
    state = _fitting(_read(file, described, say), described, file.name)
    with store.locked(name):
        return _publish(store, name, state, source)


def save(store: Store, name: str, state: Mapping[str, Tensor], *, source: str) -> str:
    """Make a network's state the model's weights, less what serves in training only.

    Gives their SHA-256. Raises `BadWeights`. Whoever calls has locked the model.
    """
    return _publish(store, name, _fitting(state, store.manifest(name), name), source)


def fetch(store: Store, name: str, progress: Progress) -> str:
    """Download a model's weights, unless they are there, and give their SHA-256.

    An earlier download that was cut short goes on where it ended; two processes that fetch
    at once take turns. Raises `ModelError` with what to do where there is no network.
    """
    described = store.manifest(name)
    if described.source is None:
        if store.has(name):  # as the bundled model has been from the beginning
            return store.verify(name)
        raise ModelError(f"the manifest of {name!r} names no source; import its weights")
    with store.locked(name):
        if store.has(name):
            return store.verify(name)
        part = store.download(name, described.source, progress)
        state = _fitting(_read(part, described), described, part.name)
        digest = _publish(store, name, state, str(described.source.url))
        part.unlink()
        return digest


def _publish(store: Store, name: str, state: Mapping[str, Tensor], source: str) -> str:
    return store.publish(name, lambda path: safetensor.write(dict(state), path, source=source))


def build(described: Manifest, *, auxiliary: bool = False) -> torch.nn.Module:
    """Make a model's network, freshly initialised; see `service.engine.networks.Build`."""
    return architecture(described).build(described.classes, described.width, auxiliary=auxiliary)


def architecture(described: Manifest) -> Architecture:
    """Find a model's architecture; raises `ModelError` if there is none of that name."""
    return networks.architecture(described.architecture)


@cache
def _sides(name: str) -> tuple[int, ...]:
    return tuple(filter(networks.architecture(name).takes, crops.SIDES))


def _shapes(described: Manifest) -> dict[str, torch.Size]:
    network = architecture(described).outline(described.classes, described.width)
    return {
        name: value.shape for name, value in network.state_dict().items() if not name.endswith(_OWN)
    }


def _read(file: Path, described: Manifest, say: Say = checkpoint.ignore) -> Mapping[str, Tensor]:
    if file.suffix == _CAFFE:
        return _from_caffe(caffemodel.read(file), described, file.name)
    if file.suffix == _SAFE:
        tensors = safetensor.read(file)
    elif file.suffix in pickled.ENDINGS:
        tensors = pickled.read(file, say)
    else:
        known = ", ".join([_CAFFE, *pickled.ENDINGS, _SAFE])
        raise BadWeights(f"{file.name} has none of the endings {known}")
    renamed = architecture(described).renamed
    plain = checkpoint.unprefixed(tensors, file.name, say)
    return {renamed(name): value for name, value in plain.items()}


def _from_caffe(
    blobs: Mapping[str, list[Tensor]], described: Manifest, file: str
) -> dict[str, Tensor]:
    shapes = _shapes(described)
    state = {}
    for layer, module in architecture(described).caffe_layers().items():
        for blob, part in zip(blobs.get(layer, []), ("weight", "bias"), strict=False):
            shape = shapes[f"{module}.{part}"]
            if blob.numel() != shape.numel():
                raise BadWeights(f"layer {layer!r} of {file} is {[*blob.shape]}, not {[*shape]}")
            state[f"{module}.{part}"] = blob.reshape(shape)
    return state


def _fitting(content: Mapping[str, object], described: Manifest, file: str) -> dict[str, Tensor]:
    """Keep what the architecture serves with; raise `BadWeights` unless all of it is there."""
    shapes = _shapes(described)
    auxiliary = architecture(described).auxiliary
    for name in content:
        if name not in shapes and not name.startswith(auxiliary) and not name.endswith(_OWN):
            raise BadWeights(f"{file} is of another architecture: it has {name!r}")
    state = {}
    for name, shape in shapes.items():
        value = content.get(name)
        if not isinstance(value, Tensor):
            raise BadWeights(f"{file} lacks {name!r}, or is of another architecture")
        if value.shape != shape:
            raise BadWeights(f"{name!r} of {file} is {[*value.shape]}, not {[*shape]}")
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise BadWeights(f"{name!r} of {file} does not hold plain floating-point numbers")
        state[name] = value.float()
        if not state[name].isfinite().all():
            raise BadWeights(f"{name!r} of {file} holds numbers that are not finite")
    return state
