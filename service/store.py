"""The model store: a folder a model, with its manifest and its checked weights.

`<root>/<name>/weights.safetensors` is a model that can be served; beside it lies its SHA-256
in the form that `sha256sum -c` reads. A model's manifest is looked for in the root and then
among those that come with the service.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock
from pydantic import BaseModel, FiniteFloat, ValidationError
from torch import Tensor

import service
from service import manifest
from service.download import Progress, download
from service.errors import BadWeights, MissingWeights, ModelError
from service.formats import caffemodel, pickled, safetensor
from service.manifest import Label, Manifest
from service.networks import ARCHITECTURES, Architecture

WEIGHTS = "weights.safetensors"
RECORD = WEIGHTS + ".sha256"
CALIBRATION = "int8.json"

_NAME = re.compile(r"[a-z0-9_]{1,64}")  # what the folder of a model may be called

_READERS: Mapping[str, Callable[[Path], Mapping[str, object]]] = {
    ".pth": pickled.read,
    ".pt": pickled.read,
    ".safetensors": safetensor.read,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from the store, ready to be put on a device."""

    name: str
    manifest: Manifest
    labels: tuple[Label, ...]
    sha256: str
    state: Mapping[str, Tensor]
    largest: Mapping[str, float] | None = None  # values within it, if it was calibrated for int8

    def network(self) -> torch.nn.Module:
        """Build the network with its weights."""
        network = _architecture(self.manifest).build(self.manifest.classes)
        network.load_state_dict(dict(self.state), strict=False)
        return network.eval()


class _Calibration(BaseModel):
    sha256: str  # of the weights it is for
    largest: dict[str, FiniteFloat]


@dataclass(frozen=True, slots=True)
class Store:
    """Models under `root`, where weights go; `builtin` has manifests only."""

    root: Path
    builtin: Path

    def names(self) -> list[str]:
        """Name every model that has a manifest."""
        folders = [path.parent.name for root in self._roots for path in root.glob("*/model.toml")]
        return sorted({name for name in folders if _NAME.fullmatch(name)})

    def manifest(self, name: str) -> Manifest:
        """Read a model's manifest; raises `ModelError` for a name the store does not know."""
        return manifest.read(self._manifest_path(name))

    def labels(self, name: str) -> tuple[Label, ...]:
        """Read a model's labels."""
        described = self.manifest(name)
        path = self._manifest_path(name).parent / described.labels
        return manifest.read_labels(path, described.classes)

    def has(self, name: str) -> bool:
        """Are a model's weights there."""
        return self._weights_path(name).is_file()

    def load(self, name: str) -> Model:
        """Read a model, checking its weights against the record and its architecture.

        Raises `MissingWeights` with what to do about it, `BadWeights`, or `ModelError`.
        """
        described = self.manifest(name)
        data, digest = self._weights(name)  # read once: what is checked is what is served
        state = _fitting(safetensor.parse(data, WEIGHTS), described, WEIGHTS)
        return Model(name, described, self.labels(name), digest, state, self._largest(name, digest))

    def quantize(self, model: Model, largest: Mapping[str, float]) -> None:
        """Record what int8 has to know of a model, for the weights that it has now."""
        with self._locked(model.name):
            path = self._weights_path(model.name).with_name(CALIBRATION)
            content = {"sha256": model.sha256, "largest": dict(largest)}
            _write(path, json.dumps(content, indent=1) + "\n")

    def _largest(self, name: str, digest: str) -> dict[str, float] | None:
        """Read what was recorded for these very weights."""
        path = self._weights_path(name).with_name(CALIBRATION)
        if not path.is_file():
            return None
        try:
            found = _Calibration.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BadWeights(f"{path} is damaged; quantize {name!r} again") from error
        return found.largest if found.sha256 == digest else None

    def verify(self, name: str) -> str:
        """Give the SHA-256 of a model's weights if it is the recorded one."""
        return self._weights(name)[1]

    def _weights(self, name: str) -> tuple[bytes, str]:
        if not self.has(name):
            raise MissingWeights(self._how_to_get(name))
        path = self._weights_path(name)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._recorded(name):
            raise BadWeights(f"{path} was changed or damaged: its SHA-256 is not the recorded one")
        return data, digest

    def install(self, name: str, file: Path, *, source: str) -> str:
        """Make a weights file the model's weights, and give their SHA-256.

        Reads a `.caffemodel`, `.pth`, `.pt` or `.safetensors` file, checks it against the
        architecture, and only then, in one step, makes it visible. Raises `BadWeights`.
        """
        described = self.manifest(name)
        if not file.is_file():
            raise ModelError(f"there is no file {file}")
        state = _fitting(_read(file, described), described, file.name)
        with self._locked(name):
            return self._publish(name, state, source)

    def fetch(self, name: str, progress: Progress) -> str:
        """Download a model's weights, unless they are there, and give their SHA-256.

        An earlier download that was cut short goes on where it ended; two processes that fetch
        at once take turns. Raises `ModelError` with what to do where there is no network.
        """
        source = self.manifest(name).source
        if source is None:
            raise ModelError(f"the manifest of {name!r} names no source; import its weights")
        with self._locked(name):
            if self.has(name):
                return self.verify(name)
            part = self._weights_path(name).with_name(f"download.{source.format}")
            try:
                download(str(source.url), part, digest=source.digest, progress=progress)
            except ModelError as error:
                raise ModelError(f"{error}\n{self._how_to_get(name)}") from error
            described = self.manifest(name)
            state = _fitting(_read(part, described), described, part.name)
            digest = self._publish(name, state, str(source.url))
            part.unlink()
            return digest

    def _publish(self, name: str, state: Mapping[str, Tensor], source: str) -> str:
        # Whenever this is cut short, the weights that are visible match a recorded digest.
        path = self._weights_path(name)
        fresh = path.with_suffix(".part")
        safetensor.write(dict(state), fresh, source=source)
        with fresh.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._record(name, [*self._recorded(name), digest])
        fresh.replace(path)
        self._record(name, [digest])
        return digest

    def _recorded(self, name: str) -> list[str]:
        path = self._weights_path(name).with_name(RECORD)
        lines = path.read_text("ascii", "replace").splitlines() if path.is_file() else []
        return [line.split()[0] for line in lines if line.strip()]

    def _record(self, name: str, digests: list[str]) -> None:
        path = self._weights_path(name).with_name(RECORD)
        _write(path, "".join(f"{digest}  {WEIGHTS}\n" for digest in digests))

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self._weights_path(name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "weights.lock"):
                yield
        except OSError as error:
            raise ModelError(f"cannot write to {folder}: {error.strerror or error}") from error

    @property
    def _roots(self) -> tuple[Path, Path]:
        return self.root, self.builtin

    def _weights_path(self, name: str) -> Path:
        return self.root / name / WEIGHTS

    def _manifest_path(self, name: str) -> Path:
        if _NAME.fullmatch(name):
            for root in self._roots:
                path = root / name / "model.toml"
                if path.is_file():
                    return path
        raise ModelError(f"there is no model {name!r}; there are {', '.join(self.names())}")

    def _how_to_get(self, name: str) -> str:
        source = self.manifest(name).source
        url = source.url if source else "wherever the model was made"
        return (
            f"The weights of {name!r} are not in {self.root}.\n"
            f"With a network:     googlenet-service models fetch {name}\n"
            f"Without, bring the file from {url}:  googlenet-service models import {name} FILE"
        )


def _write(path: Path, text: str) -> None:
    """Replace a file's text in one step: it is the old or the new one, never a part."""
    fresh = path.with_suffix(".part")
    fresh.write_text(text, "ascii")
    fresh.replace(path)


def locate(root: Path | None) -> Store:
    """Give the store at `root`; by default the checkout's, else one in the user's cache."""
    package = Path(service.__file__).parent
    checkout = package.parent / "model_store"
    builtin = checkout if checkout.is_dir() else package / "model_store"
    if root is None:
        cache = platformdirs.user_cache_path("googlenet-service") / "model_store"
        root = checkout if checkout.is_dir() else cache
    return Store(root, builtin)


def _architecture(described: Manifest) -> Architecture:
    try:
        return ARCHITECTURES[described.architecture]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"there is no architecture {described.architecture!r}; there are {known}"
        ) from None


def _shapes(described: Manifest) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = _architecture(described).build(described.classes)
    return {
        name: value.shape
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # counts training steps; older files lack it
    }


def _read(file: Path, described: Manifest) -> Mapping[str, object]:
    if file.suffix == ".caffemodel":
        return _from_caffe(caffemodel.read(file), described, file.name)
    try:
        reader = _READERS[file.suffix]
    except KeyError:
        known = ", ".join([".caffemodel", *_READERS])
        raise BadWeights(f"{file.name} has none of the endings {known}") from None
    return reader(file)


def _from_caffe(
    blobs: Mapping[str, list[Tensor]], described: Manifest, file: str
) -> dict[str, Tensor]:
    shapes = _shapes(described)
    state = {}
    for layer, module in _architecture(described).caffe_layers().items():
        for blob, part in zip(blobs.get(layer, []), ("weight", "bias"), strict=False):
            shape = shapes[f"{module}.{part}"]
            if blob.numel() != shape.numel():
                raise BadWeights(f"layer {layer!r} of {file} is {[*blob.shape]}, not {[*shape]}")
            state[f"{module}.{part}"] = blob.reshape(shape)
    return state


def _fitting(content: Mapping[str, object], described: Manifest, file: str) -> dict[str, Tensor]:
    """Keep what the architecture serves with; raise `BadWeights` unless all of it is there."""
    shapes = _shapes(described)
    dropped = _architecture(described).dropped
    for name in content:
        if name not in shapes and not name.startswith(dropped) and not name.endswith("tracked"):
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
