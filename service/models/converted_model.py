"""A model converted for OpenVINO: a file in the store, beside the weights it was made from.

An uncompressed zip archive of OpenVINO's graph and constants and a description. As one file it is
replaced atomically and checked by one SHA-256 at every load.
"""

import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import MissingWeights, ModelError, NotConverted
from service.models import pytorch
from service.models.store import FLOATS, Store

_GRAPH, _CONSTANTS, _DESCRIPTION = "model.xml", "model.bin", "model.json"
_FORMAT = 1  # of the files of `service.engine.converter`; files of others are converted again


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(_Frozen):
    """The facts needed to serve a network without building it."""

    sides: tuple[int, ...]  # supported view sizes in pixels
    last: str | None  # linear layer on the pooled features, if any
    window: int | None  # side of the pooling window; None: global pooling


class Description(_Frozen):
    """The weights and the converter that a converted model was made with."""

    weights: str  # SHA-256 of the weights
    converter: str
    network: Network


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model: OpenVINO's graph (XML) and constants, and their description.

    The graph takes normalized (N, 3, side, side) float32. Its outputs are the logits, (N, classes),
    and, if the network has a `last` layer, the features, (N, channels, rows, columns).
    """

    description: Description
    graph: bytes
    constants: bytes


def converter() -> str:
    """Return the name and version of the installed converter."""
    return f"format {_FORMAT}, OpenVINO {metadata.version('openvino')}"


def read(store: Store, name: str, weights: str, file: str = FLOATS) -> Converted:
    """Read a model's converted file, made from the weights with this SHA-256.

    A file by another version of the converter is accepted only if it cannot be converted again:
    without PyTorch, or if it is quantized. OpenVINO reads files of its earlier versions. Raises
    `NotConverted` if the file is missing, damaged, or made from other weights.
    """
    try:
        content, _ = store.read(name, file)
        model = _parse(content)
    except MissingWeights:
        raise NotConverted(f"{name!r} has no {file}") from None
    except (ModelError, ValidationError, zipfile.BadZipFile, KeyError, OSError) as error:
        raise NotConverted(f"{file} of {name!r} is damaged: {error}") from error
    if model.description.weights != weights:
        raise NotConverted(f"{file} of {name!r} was made from other weights")
    can_be_made = file == FLOATS and pytorch.is_installed()
    if model.description.converter != converter() and can_be_made:
        raise NotConverted(f"{file} of {name!r} is by another version of the converter")
    return model


def _parse(content: bytes) -> Converted:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        description = Description.model_validate_json(archive.read(_DESCRIPTION))
        return Converted(description, archive.read(_GRAPH), archive.read(_CONSTANTS))


def publish(store: Store, name: str, model: Converted, file: str = FLOATS) -> None:
    """Store a converted model; requires the store's lock on it."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_DESCRIPTION, model.description.model_dump_json(indent=1))
            archive.writestr(_GRAPH, model.graph)
            archive.writestr(_CONSTANTS, model.constants)

    store.publish(name, write, file)
