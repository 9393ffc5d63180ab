"""The service's responses as values; fields that a later version adds are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and its probability; `index` is its class index.

    `broader` has its hypernyms in WordNet, the nearest first; none where WordNet has no such label.
    """

    label: str
    wnid: str | None
    index: int
    probability: float
    broader: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpecificLabel:
    """The most specific label, a class or broader, that is as probable as `specificity`, or more.

    `probability` is that of all the `classes` that it covers; `index` is a class's.
    """

    label: str
    wnid: str | None
    index: int | None
    probability: float
    classes: int
    broader: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels one of which is the true one with a probability of `coverage`.

    `abstention` says why the set of `size` labels has none listed: it is "empty" or "too_large".
    """

    coverage: float
    size: int
    labels: tuple[Prediction, ...]
    abstention: str | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """An image's labels, most probable first, with the model, its version and the views used.

    `view_count` of the views were looked at.
    """

    model: str
    version: str
    views: str
    view_count: int
    predictions: tuple[Prediction, ...]
    notice: str | None = None
    specific: SpecificLabel | None = None  # of a request with `specificity`
    label_set: LabelSet | None = None  # with the option `coverage`

    @property
    def best(self) -> Prediction:
        """The most probable label; raises `IndexError` if `threshold` left none."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Member:
    """One network of an ensemble."""

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
    """The models that are served; `default` answers requests that name none."""

    default: str
    models: tuple[Model, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A box in the upright image, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What each cell of a view's grid adds to a label's logit.

    The logit is the grid's mean plus the label's bias.
    """

    box: Box  # the part of the image that the view shows
    grid: tuple[tuple[float, ...], ...]  # rows from the top
    logit: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a label is in an image; `box` encloses the cells above half of the maximum."""

    model: str
    views: str
    label: str
    wnid: str | None
    index: int
    probability: float
    bias: float
    maps: tuple[HeatMap, ...]  # one for each view
    box: Box | None


@dataclass(frozen=True, slots=True)
class Embedding:
    """An image's features, averaged over the views."""

    model: str
    version: str
    views: str
    features: tuple[float, ...]


def ranking(body: Mapping[str, Any], result: Mapping[str, Any]) -> Ranking:
    """Read one image's result in the response to POST /classify."""
    return Ranking(
        model=body["model"],
        version=body["version"],
        views=body["views"],
        view_count=result["view_count"],
        predictions=tuple(map(_prediction, result["predictions"])),
        notice=body.get("notice"),
        specific=_specific(result["specific"]) if result.get("specific") else None,
        label_set=_label_set(result["label_set"]) if result.get("label_set") else None,
    )


def _prediction(item: Mapping[str, Any]) -> Prediction:
    return Prediction(
        label=item["label"],
        wnid=item["wnid"],
        index=item["index"],
        probability=item["probability"],
        broader=tuple(item.get("broader") or ()),
    )


def _specific(item: Mapping[str, Any]) -> SpecificLabel:
    return SpecificLabel(
        label=item["label"],
        wnid=item["wnid"],
        index=item["index"],
        probability=item["probability"],
        classes=item["classes"],
        broader=tuple(item["broader"] or ()),
    )


def _label_set(item: Mapping[str, Any]) -> LabelSet:
    labels = tuple(map(_prediction, item["labels"]))
    return LabelSet(item["coverage"], item["size"], labels, item["abstention"])


def models(body: Mapping[str, Any]) -> Models:
    """Read the response to GET /models."""
    return Models(body["default"], tuple(map(_model, body["models"])))


def _model(item: Mapping[str, Any]) -> Model:
    return Model(
        name=item["name"],
        version=item["version"],
        device=item["device"],
        precision=item["precision"],
        classes=item["classes"],
        views=tuple(item["views"]),
        default_views=item["default_views"],
        notice=item["notice"],
        explains=item["explains"],
        members=tuple(
            Member(member["name"], member["version"], member["architecture"], member["sha256"])
            for member in item["members"]
        ),
    )


def explanation(body: Mapping[str, Any]) -> Explanation:
    """Read the response to POST /explain."""
    return Explanation(
        model=body["model"],
        views=body["views"],
        label=body["label"],
        wnid=body["wnid"],
        index=body["index"],
        probability=body["probability"],
        bias=body["bias"],
        maps=tuple(map(_heat_map, body["maps"])),
        box=_box(body["box"]) if body["box"] else None,
    )


def _heat_map(item: Mapping[str, Any]) -> HeatMap:
    return HeatMap(_box(item), tuple(tuple(row) for row in item["grid"]), item["logit"])


def embedding(body: Mapping[str, Any]) -> Embedding:
    """Read the response to POST /embed."""
    return Embedding(body["model"], body["version"], body["views"], tuple(body["features"]))


def _box(item: Mapping[str, Any]) -> Box:
    return Box(item["left"], item["top"], item["width"], item["height"])
