"""A model converted for OpenVINO, as it lies in the store beside the weights it was made from.

One zip archive, its members not compressed: OpenVINO's graph and constants, and a description.
As one file it is replaced in one step, and checked by one SHA-256 at every load.
"""

import io
import zipfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import MissingWeights, ModelError, NotConverted
from service.models.store import FLOATS, Store

_GRAPH, _CONSTANTS, _DESCRIPTION = "model.xml", "model.bin", "model.json"
_FORMAT = 1  # of what `service.engine.converter` makes; another one is made anew


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(_Frozen):
    """What has to be known of a network to serve it without building it."""

    sides: tuple[int, ...]  # pixels of the views that it takes
    last: str | None  # module that gives the logits from pooled features, if there is one
    window: int | None  # places along the windows that are pooled; none: the whole map is


class Description(_Frozen):
    """What a converted model was made from, and by what."""

    weights: str  # SHA-256 of the weights
    converter: str
    network: Network


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model: OpenVINO's graph (XML) and constants, and their description.

    The graph takes (N, 3, side, side) float32, scaled as the network takes it, and gives the
    logits, (N, classes), and after them the features, (N, channels, rows, columns), if it `last`
    pools those.
    """

    description: Description
    graph: bytes
    constants: bytes


def converter() -> str:
    """Name what converts models here, with its version."""
    return f"format {_FORMAT}, OpenVINO {metadata.version('openvino')}"


def read(store: Store, name: str, weights: str, file: str = FLOATS) -> Converted:
    """Read a model's converted file, made from the weights with this SHA-256.

    A file by another version of the converter counts only if it cannot be made anew, for there is
    no PyTorch, or it was quantized: OpenVINO reads what its earlier versions wrote. Raises
    `NotConverted` if the file is missing, damaged, or made from other weights.
    """
    try:
        content, _ = store.read(name, file)
        found = _parse(content)
    except MissingWeights:
        raise NotConverted(f"{name!r} has no {file}") from None
    except (ModelError, ValidationError, zipfile.BadZipFile, KeyError, OSError) as error:
        raise NotConverted(f"{file} of {name!r} is damaged: {error}") from error
    if found.description.weights != weights:
        raise NotConverted(f"{file} of {name!r} was made from other weights")
    can_be_made = file == FLOATS and util.find_spec("torch") is not None
    if found.description.converter != converter() and can_be_made:
        raise NotConverted(f"{file} of {name!r} is by another version of the converter")
    return found


def _parse(content: bytes) -> Converted:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        description = Description.model_validate_json(archive.read(_DESCRIPTION))
        return Converted(description, archive.read(_GRAPH), archive.read(_CONSTANTS))


def publish(store: Store, name: str, model: Converted, file: str = FLOATS) -> None:
    """Store a converted model; the caller has locked it."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_DESCRIPTION, model.description.model_dump_json(indent=1))
            archive.writestr(_GRAPH, model.graph)
            archive.writestr(_CONSTANTS, model.constants)

    store.publish(name, write, file)
