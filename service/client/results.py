"""What the service answers, as values; what a later version adds to its answers is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and how probable it is; `index` is its place among the classes."""

    label: str
    wnid: str | None
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """An image's labels, most probable first, and by which version of a model and views."""

    model: str
    version: str
    views: str
    predictions: tuple[Prediction, ...]
    notice: str | None = None

    @property
    def best(self) -> Prediction:
        """The most probable label."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Member:
    """One of the networks that a model averages."""

    name: str
    version: str
    architecture: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served."""

    name: str
    version: str
    device: str
    precision: str
    classes: int
    views: tuple[str, ...]
    default_views: str
    notice: str | None
    explains: bool
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """All that is served; `default` is what answers when no model is named."""

    default: str
    models: tuple[Model, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the upright image, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What each place of a view adds to a label's logit.

    The grid's mean and the label's bias are together that logit.
    """

    box: Box  # that the view shows of the image
    grid: tuple[tuple[float, ...], ...]  # rows from the top
    logit: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where in an image a label is seen; `box` is around what adds over half of the most."""

    model: str
    views: str
    label: str
    wnid: str | None
    index: int
    probability: float
    bias: float
    maps: tuple[HeatMap, ...]  # one a view
    box: Box | None


def ranking(answer: Mapping[str, Any], predictions: Any) -> Ranking:
    """Read what was said of an image in an answer to POST /classify."""
    made = tuple(
        Prediction(one["label"], one["wnid"], one["index"], one["probability"])
        for one in predictions
    )
    about = (answer["model"], answer["version"], answer["views"])
    return Ranking(*about, made, answer.get("notice"))


def models(answer: Mapping[str, Any]) -> Models:
    """Read the answer to GET /models."""
    return Models(answer["default"], tuple(_model(one) for one in answer["models"]))


def _model(one: Mapping[str, Any]) -> Model:
    return Model(
        name=one["name"],
        version=one["version"],
        device=one["device"],
        precision=one["precision"],
        classes=one["classes"],
        views=tuple(one["views"]),
        default_views=one["default_views"],
        notice=one["notice"],
        explains=one["explains"],
        members=tuple(
            Member(member["name"], member["version"], member["architecture"], member["sha256"])
            for member in one["members"]
        ),
    )


def explanation(answer: Mapping[str, Any]) -> Explanation:
    """Read the answer to POST /explain."""
    return Explanation(
        model=answer["model"],
        views=answer["views"],
        label=answer["label"],
        wnid=answer["wnid"],
        index=answer["index"],
        probability=answer["probability"],
        bias=answer["bias"],
        maps=tuple(_heat_map(one) for one in answer["maps"]),
        box=_box(answer["box"]) if answer["box"] else None,
    )


def _heat_map(one: Mapping[str, Any]) -> HeatMap:
    return HeatMap(_box(one), tuple(tuple(row) for row in one["grid"]), one["logit"])


def _box(one: Mapping[str, Any]) -> Box:
    return Box(one["left"], one["top"], one["width"], one["height"])
