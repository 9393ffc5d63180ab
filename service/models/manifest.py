"""A model's manifest (`model.toml`) and labels."""

import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

import tomlkit
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    HttpUrl,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from service.errors import ModelError
from service.imaging.crops import CROP, Interpolation, Resize, Rule
from service.models.hypernyms import Hypernyms
from service.models.stopping_rule import LEAD, STANDARD_ERRORS

Channel = Annotated[float, Field(ge=0, le=255)]
Format = Literal["caffemodel", "pth", "safetensors"]

_NO_HYPERNYMS: Mapping[str, Hypernyms] = MappingProxyType({})


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Table):
    """Preprocessing of uint8 pixels: resize, then (pixel - mean) * scale, by channel."""

    channels: Literal["RGB", "BGR"]
    mean: tuple[Channel, Channel, Channel]  # in the order of `channels`, in pixel units
    scale: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (1.0, 1.0, 1.0)
    resize: Rule  # of the views `single` and `ten`; others have their own
    side: Annotated[int, Field(ge=CROP, le=1024)]  # pixels
    interpolation: Interpolation = "bilinear"
    mirror: bool = True  # whether mirrored images keep their class

    @property
    def resized(self) -> Resize:
        """The resize rule as `service.imaging.crops` takes it."""
        return Resize(self.resize, self.side, self.interpolation)


class Source(_Table):
    """Where to download the weights, and their digest or a prefix of it."""

    url: HttpUrl
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{8,64}|sha1:[0-9a-f]{40})$")]
    format: Format


class Accuracy(_Table):
    """Accuracy on held-out images, in per cent."""

    dataset: str
    views: str
    top1: float
    top5: float


class _Fitted(_Table):
    agreement: Annotated[float, Field(gt=0, lt=1)]  # wanted: share with the label of all views
    differences: int  # images with another first label than by all views
    views: float  # looked at on average


class Stopping(_Fitted):
    """The lead with which the views `adaptive` stop, as fitted to images."""

    lead: Annotated[float, Field(ge=0, le=2)]  # above 1 it looks at all views


class PairedStopping(_Fitted):
    """The standard errors with which the views `adaptive:paper` stop, as fitted to images."""

    standard_errors: Annotated[float, Field(gt=0, le=1000)]


class LabelSets(_Table):
    """The least probability of labels in a set, by view plan and level of coverage."""

    levels: Annotated[tuple[float, ...], Field(min_length=1)]  # ascending
    thresholds: dict[str, tuple[float, ...]]  # of each plan, one a level

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(len(row) != len(self.levels) for row in self.thresholds.values()):
            raise ValueError("each view plan needs a threshold for each level")
        if any(lower >= higher for lower, higher in pairwise(self.levels)):
            raise ValueError("levels have to ascend")
        return self


class Bins(_Table):
    """A histogram of images: bin i has the values above edge i - 1, up to and with edge i."""

    edges: tuple[FiniteFloat, ...]  # ascending
    counts: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]  # one more than edges

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError("bins need one count more than edges")
        if any(lower >= higher for lower, higher in pairwise(self.edges)):
            raise ValueError("edges have to ascend")
        return self


class Reference(_Table):
    """What a view plan answered on the calibration images, to compare later answers with."""

    labels: Bins  # of the first label's class index
    confidence: Bins  # of its probability


class Calibration(_Table):
    """What was fitted to labelled images: temperature, stopping rule, label sets, reference."""

    temperature: Annotated[float, Field(gt=0, lt=1000)]
    sha256: str  # of the weights it was fitted for; ignored for others
    images: int  # number it was fitted to
    error: tuple[float, float]  # held-out expected calibration error, before and after
    stopping: Stopping | None = None
    paired: PairedStopping | None = None
    sets: LabelSets | None = None
    reference: dict[str, Reference] | None = None  # by view plan


class Training(_Table):
    """How weights trained by this service were made."""

    command: str
    fingerprint: str  # SHA-256 of all images and their classes
    images: int  # trained on
    held_out: int  # images for validation
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
    notice: str | None = None  # included in every response
    preprocessing: Preprocessing
    source: Source | None = None
    accuracy: tuple[Accuracy, ...] = ()
    calibration: Calibration | None = None
    training: Training | None = None

    def fitted(self, sha256: str) -> Calibration | None:
        """Return the calibration of these weights; None if they have none."""
        fitted = self.calibration
        return fitted if fitted and fitted.sha256 == sha256 else None

    def temperature(self, sha256: str) -> float:
        """Return the softmax temperature of these weights; 1 if they are not calibrated."""
        fitted = self.fitted(sha256)
        return fitted.temperature if fitted else 1.0

    def lead(self, sha256: str) -> float:
        """Return the stopping rule's lead for these weights; `LEAD` if none was fitted."""
        fitted = self.fitted(sha256)
        return fitted.stopping.lead if fitted and fitted.stopping else LEAD

    def standard_errors(self, sha256: str) -> float:
        """Return the paired rule's for these weights; `STANDARD_ERRORS` if none were fitted."""
        fitted = self.fitted(sha256)
        return fitted.paired.standard_errors if fitted and fitted.paired else STANDARD_ERRORS

    def label_sets(self, sha256: str) -> LabelSets | None:
        """Return the label sets of these weights; None if they are not calibrated."""
        fitted = self.fitted(sha256)
        return fitted.sets if fitted else None

    def references(self, sha256: str) -> Mapping[str, Reference]:
        """Return the references of these weights by view plan; none if not calibrated."""
        fitted = self.fitted(sha256)
        return (fitted.reference if fitted else None) or {}


class Label(_Table):
    """A class: its name, and its WordNet id and hypernyms where it has them."""

    name: str
    wnid: str | None
    broader: Hypernyms = ()


def read(path: Path) -> Manifest:
    """Read a manifest; raises `ModelError` with its first error."""
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
    """Format a manifest as TOML."""
    return tomlkit.dumps(described.model_dump(mode="json", exclude_defaults=True))


def calibrated(text: str, calibration: Calibration) -> str:
    """Set the calibration in a manifest's text; comments and order stay."""
    document = tomlkit.parse(text)
    document["calibration"] = calibration.model_dump(mode="json", exclude_none=True)
    return tomlkit.dumps(document)


def read_labels(
    path: Path, classes: int, broader: Mapping[str, Hypernyms] = _NO_HYPERNYMS
) -> tuple[Label, ...]:
    """Read labels, one per line: the WordNet id (or nothing), a tab, the name.

    `broader` has hypernyms by WordNet id.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read the labels {path}: {reason}") from error
    if len(lines) != classes:
        raise ModelError(f"{path} has {len(lines)} labels and the model {classes} classes")
    pairs = [line.rpartition("\t") for line in lines]
    return tuple(
        Label(name=name, wnid=wnid or None, broader=broader.get(wnid, ()))
        for wnid, _, name in pairs
    )
