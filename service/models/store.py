"""The model store: one folder per model, with its manifest and checksummed weights.

`<root>/<name>/weights.safetensors` has a model's weights; files converted from it are in the same
folder (`service.models.converted_model`). Each has a `.sha256` file in the format of
`sha256sum -c`. Manifests are read from the root, then from those that come with the service.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

import service
from service.errors import BadWeights, MissingWeights, ModelError
from service.models import hypernyms, manifest
from service.models.download import Progress, download
from service.models.manifest import Calibration, Label, Manifest, Source
from service.settings import NAME

BUNDLED = "digits"  # comes with the service, including its weights
WEIGHTS = "weights.safetensors"
FLOATS = "openvino.zip"  # the weights converted for OpenVINO
INT8 = "openvino_int8.zip"  # the same, quantized
RECORD = ".sha256"
MANIFEST = "model.toml"


@dataclass(frozen=True, slots=True)
class Store:
    """Models under `root`, which is written to; `builtin` has manifests and the bundled model."""

    root: Path
    builtin: Path

    def names(self) -> list[str]:
        """List the models that have a manifest."""
        folders = [path.parent.name for root in self._roots for path in root.glob(f"*/{MANIFEST}")]
        return sorted({name for name in folders if re.fullmatch(NAME, name)})

    def manifest(self, name: str) -> Manifest:
        """Read a model's manifest; raises `ModelError` for an unknown name.

        `name@version` is the folder of one version of a model.
        """
        described = manifest.read(self._manifest_path(name))
        _, separator, version = name.partition("@")
        if separator and described.version != version:
            raise ModelError(f"the manifest of {name!r} is of version {described.version!r}")
        return described

    def version(self, model: str) -> str:
        """Return a model's version, or several, comma-separated, as of an ensemble."""
        return ",".join(self.manifest(name).version for name in model.split(","))

    def labels(self, name: str) -> tuple[Label, ...]:
        """Read a model's labels, with the hypernyms of those that WordNet's table has."""
        described = self.manifest(name)
        path = self._labels_path(name, described.labels)
        broader = hypernyms.read(self.builtin / hypernyms.TABLE)
        return manifest.read_labels(path, described.classes, broader)

    def fingerprint(self, name: str) -> tuple[str, ...] | None:
        """Return a value that changes with the model's files; None if there is no such model."""
        try:
            files = [self._manifest_path(name)]
        except ModelError:
            return None
        with suppress(ModelError):  # a broken manifest counts as a change
            files.append(self._labels_path(name, self.manifest(name).labels))
        files += [_record_path(self._readable(name, file)) for file in (WEIGHTS, INT8)]
        return tuple(map(_text, files))

    def has(self, name: str, file: str = WEIGHTS) -> bool:
        """Whether a model's weights, or another checksummed file, exist."""
        return self._readable(name, file).is_file()

    def describe(self, name: str, described: Manifest, labels: Iterable[str]) -> None:
        """Write a model's manifest and labels; requires its lock."""
        folder = self.root / name
        _write(folder / described.labels, "".join(f"\t{label}\n" for label in labels))
        _write(folder / MANIFEST, manifest.written(described))

    def calibrate(self, name: str, calibration: Calibration) -> None:
        """Write a calibration into a model's manifest in `root`; requires the model's lock."""
        text = self._manifest_path(name).read_text("utf-8")
        _write(self.root / name / MANIFEST, manifest.calibrated(text, calibration))

    def verify(self, name: str) -> str:
        """Return the SHA-256 of a model's weights; raises what `read` does."""
        return self.read(name)[1]

    def read(self, name: str, file: str = WEIGHTS) -> tuple[bytes, str]:
        """Read a model's weights, or another checksummed file, and its SHA-256.

        Raises `MissingWeights` with instructions, or `BadWeights` if it cannot be read or its
        checksum differs.
        """
        if not self.has(name, file):
            raise MissingWeights(self._how_to_get(name))
        path = self._readable(name, file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadWeights(f"cannot read {path}: {error.strerror or error}") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest not in _recorded(path):
            raise BadWeights(f"{path} was changed or damaged: its SHA-256 is not the recorded one")
        return data, digest

    def download(self, name: str, source: Source, progress: Progress) -> Path:
        """Download a model's source file into its folder, resuming a partial one.

        Raises `ModelError` with instructions if there is no network.
        """
        part = self._path(name, f"download.{source.format}")
        try:
            download(str(source.url), part, digest=source.digest, progress=progress)
        except ModelError as error:
            raise type(error)(f"{error}\n{self._how_to_get(name)}") from error
        return part

    def publish(self, name: str, write: Callable[[Path], None], file: str = WEIGHTS) -> str:
        """Replace a model's weights, or another checksummed file; return its SHA-256.

        At every moment the visible file matches a recorded digest.
        """
        path = self._path(name, file)
        fresh = path.with_suffix(".part")
        write(fresh)
        with fresh.open("rb+") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
        _record(path, [*_recorded(path), digest])
        fresh.replace(path)
        _record(path, [digest])
        return digest

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Lock a model against other writers, in this and other processes."""
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "weights.lock"):
                yield
        except OSError as error:
            raise ModelError(f"cannot write to {folder}: {error.strerror or error}") from error

    @property
    def _roots(self) -> tuple[Path, Path]:
        return self.root, self.builtin

    def _path(self, name: str, file: str) -> Path:
        return self.root / name / file

    def _readable(self, name: str, file: str) -> Path:
        """Return the path to read a file from: the bundled model's may be in `builtin`."""
        path = self._path(name, file)
        return self.builtin / name / file if name == BUNDLED and not path.is_file() else path

    def _labels_path(self, name: str, file: str) -> Path:
        paths = [root / name / file for root in self._roots]
        return next(filter(Path.is_file, paths), paths[0])

    def _manifest_path(self, name: str) -> Path:
        if re.fullmatch(NAME, name):
            paths = [root / name / MANIFEST for root in self._roots]
            if path := next(filter(Path.is_file, paths), None):
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


def _text(path: Path) -> str:
    """Read a file; an empty string if it is missing or not readable."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + RECORD)


def _recorded(file: Path) -> list[str]:
    path = _record_path(file)
    lines = path.read_text("ascii", "replace").splitlines() if path.is_file() else []
    return [line.split()[0] for line in lines if line.strip()]


def _record(file: Path, digests: list[str]) -> None:
    _write(_record_path(file), "".join(f"{digest}  {file.name}\n" for digest in digests))


def _write(path: Path, text: str) -> None:
    """Replace a file's text atomically."""
    fresh = path.with_suffix(".part")
    fresh.write_text(text, "utf-8")
    fresh.replace(path)


def locate(root: Path | None) -> Store:
    """Return the store at `root`; by default the checkout's, else one in the user's cache."""
    package = Path(service.__file__).parent
    checkout = package.parent / "model_store"
    builtin = checkout if checkout.is_dir() else package / "model_store"
    if root is None:
        cache = platformdirs.user_cache_path("googlenet-service") / "model_store"
        root = checkout if checkout.is_dir() else cache
    return Store(root, builtin)
