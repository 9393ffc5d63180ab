"""A model's weights: read from files and the store, checked against the architecture."""

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
from service.engine.networks.uninitialized import Uninitialized
from service.errors import BadWeights, ModelError
from service.imaging import crops
from service.models.download import Progress
from service.models.manifest import Label, Manifest
from service.models.store import WEIGHTS, Store

_CAFFE, _SAFE = ".caffemodel", ".safetensors"

# Buffers that networks compute themselves: counters of training steps, which older files lack, and
# the index tables of windowed attention.
_BUFFERS = ("num_batches_tracked", "relative_position_index")


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from the store, on no device yet."""

    name: str
    manifest: Manifest
    labels: tuple[Label, ...]
    sha256: str
    state: Mapping[str, Tensor]

    @property
    def temperature(self) -> float:
        """The softmax temperature."""
        return self.manifest.temperature(self.sha256)

    @property
    def explains(self) -> bool:
        """Whether it has class activation maps."""
        return architecture(self.manifest).explains

    @property
    def channels(self) -> int:
        """The number of its features; 0 without class activation maps."""
        made = architecture(self.manifest)
        return self.state[f"{made.last}.weight"].shape[1] if made.explains else 0

    @property
    def sides(self) -> tuple[int, ...]:
        """Supported view sizes in pixels."""
        return _sides(self.manifest.architecture)

    def network(self) -> torch.nn.Module:
        """Build the network with its weights."""
        with Uninitialized():
            network = build(self.manifest)
        networks.fill(network, self.state)
        return network.eval()


def load(store: Store, name: str) -> Model:
    """Read a model; its weights are checked by checksum and against the architecture.

    Raises `MissingWeights` with instructions, `BadWeights`, or `ModelError`.
    """
    manifest = store.manifest(name)
    data, digest = store.read(name)  # read once, so that the checked bytes are served
    state = _fitting(safetensor.parse(data, WEIGHTS), manifest, WEIGHTS)
    return Model(name, manifest, store.labels(name), digest, state)


def install(
    store: Store, name: str, file: Path, *, source: str, say: Say = checkpoint.ignore
) -> str:
    """Import a weights file of Caffe, PyTorch or safetensors; return the SHA-256 of the weights.

    The file is checked against the architecture before it replaces the weights atomically. Raises
    `BadWeights`. `say` is called with what was changed of a training checkpoint.
    """
    manifest = store.manifest(name)
    if not file.is_file():
        raise ModelError(f"there is no file {file}")
    state = _fitting(_read(file, manifest, say), manifest, file.name)
    with store.locked(name):
        return _publish(store, name, state, source)


def save(store: Store, name: str, state: Mapping[str, Tensor], *, source: str) -> str:
    """Store a network's state as the model's weights, without training-only tensors.

    Returns their SHA-256. Raises `BadWeights`. Requires the store's lock on the model.
    """
    return _publish(store, name, _fitting(state, store.manifest(name), name), source)


def fetch(store: Store, name: str, progress: Progress) -> str:
    """Download a model's weights unless they are there; return their SHA-256.

    Resumes a partial download; locks against other processes. Raises `ModelError` with
    instructions if there is no network.
    """
    manifest = store.manifest(name)
    if manifest.source is None:
        if store.has(name):  # the bundled model
            return store.verify(name)
        raise ModelError(f"the manifest of {name!r} names no source; import its weights")
    with store.locked(name):
        if store.has(name):
            return store.verify(name)
        part = store.download(name, manifest.source, progress)
        state = _fitting(_read(part, manifest), manifest, part.name)
        digest = _publish(store, name, state, str(manifest.source.url))
        part.unlink()
        return digest


def _publish(store: Store, name: str, state: Mapping[str, Tensor], source: str) -> str:
    return store.publish(name, lambda path: safetensor.write(dict(state), path, source=source))


def build(manifest: Manifest, *, auxiliary: bool = False) -> torch.nn.Module:
    """Build a model's network with initial weights; see `service.engine.networks.Build`."""
    return architecture(manifest).build(manifest.classes, manifest.width, auxiliary=auxiliary)


def architecture(manifest: Manifest) -> Architecture:
    """Return a model's architecture; raises `ModelError` if it is unknown."""
    return networks.architecture(manifest.architecture)


@cache
def _sides(name: str) -> tuple[int, ...]:
    return tuple(filter(networks.architecture(name).takes, crops.SIDES))


def _shapes(manifest: Manifest) -> dict[str, torch.Size]:
    network = architecture(manifest).outline(manifest.classes, manifest.width)
    return {
        name: value.shape
        for name, value in network.state_dict().items()
        if not name.endswith(_BUFFERS)
    }


def _read(file: Path, manifest: Manifest, say: Say = checkpoint.ignore) -> Mapping[str, Tensor]:
    if file.suffix == _CAFFE:
        return _from_caffe(caffemodel.read(file), manifest, file.name)
    if file.suffix == _SAFE:
        tensors = safetensor.read(file)
    elif file.suffix in pickled.ENDINGS:
        tensors = pickled.read(file, say)
    else:
        known = ", ".join([_CAFFE, *pickled.ENDINGS, _SAFE])
        raise BadWeights(f"{file.name} has none of the endings {known}")
    renamed = architecture(manifest).renamed
    plain = checkpoint.unprefixed(tensors, file.name, say)
    return {renamed(name): value for name, value in plain.items()}


def _from_caffe(
    blobs: Mapping[str, list[Tensor]], manifest: Manifest, file: str
) -> dict[str, Tensor]:
    shapes = _shapes(manifest)
    state = {}
    for layer, module in architecture(manifest).caffe_layers().items():
        for blob, part in zip(blobs.get(layer, []), ("weight", "bias"), strict=False):
            shape = shapes[f"{module}.{part}"]
            if blob.numel() != shape.numel():
                raise BadWeights(f"layer {layer!r} of {file} is {[*blob.shape]}, not {[*shape]}")
            state[f"{module}.{part}"] = blob.reshape(shape)
    return state


def _fitting(content: Mapping[str, object], manifest: Manifest, file: str) -> dict[str, Tensor]:
    """Select the tensors of the architecture; raises `BadWeights` if one is missing or invalid."""
    shapes = _shapes(manifest)
    auxiliary = architecture(manifest).auxiliary
    for name in content:
        if name not in shapes and not name.startswith(auxiliary) and not name.endswith(_BUFFERS):
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
