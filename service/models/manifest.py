"""A model's manifest: all that is known about it besides its weights."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, HttpUrl, ValidationError

from service.errors import ModelError
from service.imaging.crops import CROP, Interpolation, Resize, Rule

Channel = Annotated[float, Field(ge=0, le=255)]
Format = Literal["caffemodel", "pth", "safetensors"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Table):
    """From uint8 pixels to what the network takes: (pixel - mean) * scale, by channel."""

    channels: Literal["RGB", "BGR"]
    mean: tuple[Channel, Channel, Channel]  # in the order of `channels`, in pixel units
    scale: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (1.0, 1.0, 1.0)
    resize: Rule  # of `single` and `ten`; the other views say their own
    side: Annotated[int, Field(ge=CROP, le=1024)]  # pixels
    interpolation: Interpolation = "bilinear"
    mirror: bool = True  # may an image be mirrored, and still be of its class

    @property
    def resized(self) -> Resize:
        """The resize rule as `service.imaging.crops` takes it."""
        return Resize(self.resize, self.side, self.interpolation)


class Source(_Table):
    """Where the weights can be had, and the digest (or its beginning) that proves them."""

    url: HttpUrl
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{8,64}|sha1:[0-9a-f]{40})$")]
    format: Format


class Accuracy(_Table):
    """How often the weights were right on images they had not learnt from, in per cent."""

    dataset: str
    views: str
    top1: float
    top5: float


class Calibration(_Table):
    """What the logits are divided by, so that a probability is how often the label is right."""

    temperature: Annotated[float, Field(gt=0, lt=1000)]
    sha256: str  # of the weights it was fitted for; others are served as they are
    images: int  # it was fitted to
    error: tuple[float, float]  # expected calibration error, before and after, held out


class Training(_Table):
    """Where weights that were trained here come from."""

    command: str
    fingerprint: str  # SHA-256 of all images and their classes
    images: int  # learnt from
    held_out: int  # judged by, never learnt from
    epochs: int


class Manifest(_Table):
    """`model.toml`."""

    architecture: str
    width: Annotated[float, Field(gt=0, le=8)] = 1.0  # times as many filters as published
    version: str
    description: str
    licence: str
    classes: Annotated[int, Field(ge=1, le=100_000)]
    labels: str  # a file of `wnid<TAB>label` lines, in the order of the classes
    notice: str | None = None  # what every answer has to say of the model
    preprocessing: Preprocessing
    source: Source | None = None
    accuracy: tuple[Accuracy, ...] = ()
    calibration: Calibration | None = None
    training: Training | None = None

    def temperature(self, sha256: str) -> float:
        """Give what the logits are divided by; 1 unless the weights so named were calibrated."""
        found = self.calibration
        return found.temperature if found and found.sha256 == sha256 else 1.0


class Label(_Table):
    """A class: its name, and its WordNet id where it has one."""

    name: str
    wnid: str | None


def read(path: Path) -> Manifest:
    """Read a manifest; raises `ModelError` with the first thing that is wrong with it."""
    try:
        return Manifest.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: {where}: {first['msg']}") from error


def written(described: Manifest) -> str:
    """Give the text of a manifest, as `read` reads it."""
    return tomlkit.dumps(described.model_dump(mode="json", exclude_defaults=True))


def calibrated(text: str, found: Calibration) -> str:
    """Put a calibration into a manifest's text, and leave everything else as it is."""
    document = tomlkit.parse(text)
    document["calibration"] = found.model_dump(mode="json")
    return tomlkit.dumps(document)


def read_labels(path: Path, classes: int) -> tuple[Label, ...]:
    """Read the labels of a model, one a line: the WordNet id (or nothing), a tab, the name."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read the labels {path}: {reason}") from error
    if len(lines) != classes:
        raise ModelError(f"{path} has {len(lines)} labels and the model {classes} classes")
    pairs = [line.rpartition("\t") for line in lines]
    return tuple(Label(name=name, wnid=wnid or None) for wnid, _, name in pairs)
