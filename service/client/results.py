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
    """A picture's labels, most probable first, and by which model and views."""

    model: str
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
    notice: str | None = None
    explains: bool = False
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Models:
    """All that is served; `default` is what answers when no model is named."""

    default: str | None
    models: tuple[Model, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What of a view speaks for the label; the view's place is in pixels of the upright picture."""

    left: float
    top: float
    width: float
    height: float
    grid: tuple[tuple[float, ...], ...]  # rows from the top, in the unit of logits


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the upright picture, in its pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where in a picture (`width` x `height` pixels) a label is seen.

    The mean of a map's grid and `bias` together are that view's logit; `box` is where the
    average of the maps is above half of its maximum.
    """

    model: str
    views: str
    width: int
    height: int
    label: str
    wnid: str | None
    index: int
    probability: float
    logit: float
    bias: float
    maps: tuple[HeatMap, ...]
    box: Box | None


def ranking(answer: Mapping[str, Any], predictions: Any) -> Ranking:
    """Read what was said of a picture in an answer to POST /classify."""
    made = tuple(
        Prediction(one["label"], one["wnid"], one["index"], one["probability"])
        for one in predictions
    )
    return Ranking(answer["model"], answer["views"], made, answer.get("notice"))


def models(answer: Mapping[str, Any]) -> Models:
    """Read the answer to GET /models."""
    return Models(answer.get("default"), tuple(_model(one) for one in answer["models"]))


def _model(one: Mapping[str, Any]) -> Model:
    return Model(
        name=one["name"],
        version=one["version"],
        device=one["device"],
        precision=one["precision"],
        classes=one["classes"],
        views=tuple(one["views"]),
        default_views=one["default_views"],
        notice=one.get("notice"),
        explains=one.get("explains", False),
        members=tuple(
            Member(member["name"], member["version"], member["architecture"], member["sha256"])
            for member in one.get("members", ())
        ),
    )


def explanation(answer: Mapping[str, Any]) -> Explanation:
    """Read the answer to POST /explain."""
    box = answer.get("box")
    return Explanation(
        model=answer["model"],
        views=answer["views"],
        width=answer["width"],
        height=answer["height"],
        label=answer["label"],
        wnid=answer["wnid"],
        index=answer["index"],
        probability=answer["probability"],
        logit=answer["logit"],
        bias=answer["bias"],
        maps=tuple(_heat_map(one) for one in answer["maps"]),
        box=Box(box["left"], box["top"], box["width"], box["height"]) if box else None,
    )


def _heat_map(one: Mapping[str, Any]) -> HeatMap:
    grid = tuple(tuple(row) for row in one["grid"])
    return HeatMap(one["left"], one["top"], one["width"], one["height"], grid)
