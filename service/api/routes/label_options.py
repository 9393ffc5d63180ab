"""The label options of POST /classify: which labels an answer has, and how specific they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from service.api.routes.image_request import ImageQuery
from service.errors import NoBroaderLabels
from service.models.ensemble import Ensemble, Prediction
from service.models.label_filter import LabelFilter
from service.models.label_tree import Node
from service.serving.types import Answer

MAX_LABELS = 100  # that a request names
MAX_LABEL = 100  # characters of each
MAX_LENGTH = 2000  # characters of all of them

Broader = Annotated[
    list[str] | None,
    Field(
        description="ever broader labels by WordNet, the nearest first; null if it has none",
        examples=[["hound", "hunting dog", "dog", "canine", "carnivore"]],
    ),
]


def _checked(labels: str) -> str:
    names = labels.split(",")
    if len(names) > MAX_LABELS or not all(0 < len(name) <= MAX_LABEL for name in names):
        raise PydanticCustomError(
            "labels",
            "give 1 to {most} labels, separated by commas, of 1 to {longest} characters each",
            {"most": MAX_LABELS, "longest": MAX_LABEL},
        )
    return labels


_ONE = f"[^,]{{1,{MAX_LABEL}}}"
_PATTERN = f"^{_ONE}(,{_ONE}){{0,{MAX_LABELS - 1}}}$"
Labels = Annotated[
    str,
    Field(max_length=MAX_LENGTH, json_schema_extra={"pattern": _PATTERN}),
    AfterValidator(_checked),
]


class LabelQuery(ImageQuery):
    """Parameters that choose labels, in a request's query or its form."""

    labels: Annotated[
        Labels | SkipJsonSchema[None],
        Field(
            description="rank these only, separated by commas: the index, WordNet id or name of a "
            "class, or the WordNet id or name of a broader label; default: all",
            examples=["dog,n02123045,281"],
        ),
    ] = None
    threshold: Annotated[
        float, Field(ge=0, le=1, description="leave out labels that are less probable")
    ] = 0.0
    renormalise: Annotated[
        bool,
        Field(description="divide probabilities by that of all `labels` together"),
    ] = False
    specificity: Annotated[
        Annotated[float, Field(gt=0, le=1)] | SkipJsonSchema[None],
        Field(
            description="the answer has in `specific` the most specific label, broader ones "
            "included, that is at least as probable as this"
        ),
    ] = None


SPECIFIC = Field(description="only with `specificity`")


class SpecificLabel(BaseModel):
    """The most specific label that is as probable as the request's `specificity`, or more."""

    label: Annotated[str, Field(examples=["dog"])]
    wnid: Annotated[str | None, Field(description="WordNet id", examples=["n02084071"])]
    index: Annotated[int | None, Field(description="of a class; null of a broader label")]
    probability: Annotated[
        float, Field(ge=0, le=1, description="of all its classes together", examples=[0.97])
    ]
    classes: Annotated[int, Field(ge=1, description="how many it covers", examples=[118])]
    broader: Broader


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """The options of a request for the labels of an ensemble."""

    ensemble: Ensemble
    top_k: int
    kept: LabelFilter | None
    specificity: float | None

    @classmethod
    def of(cls, query: LabelQuery, ensemble: Ensemble, top_k: int) -> Self:
        """Read a query; raises `UnknownLabel` or `NoBroaderLabels`."""
        kept = None
        if query.labels or query.threshold:
            names = query.labels.split(",") if query.labels else ()
            kept = LabelFilter.of(
                ensemble, names, threshold=query.threshold, renormalise=query.renormalise
            )
        if query.specificity is not None and ensemble.tree.is_flat:
            raise NoBroaderLabels(f"{ensemble.name} has no broader labels; omit `specificity`")
        return cls(ensemble, top_k, kept, query.specificity)

    def described(self, answer: Answer) -> Mapping[str, Any]:
        """Make an answer's `predictions` and, if it was asked for, `specific`."""
        predictions = answer.predictions
        if self.kept:
            predictions = self.kept.rank(self.ensemble, answer.probabilities, self.top_k)
        described = {"predictions": [prediction(self.ensemble, one) for one in predictions]}
        if self.specificity is None:
            return described
        node = self.ensemble.tree.most_specific(answer.probabilities, self.specificity)
        return {**described, "specific": _specific(*node)}


def prediction(ensemble: Ensemble, ranked: Prediction) -> Mapping[str, Any]:
    """Describe one label of a ranking."""
    return {
        "label": ranked.label,
        "wnid": ranked.wnid,
        "index": ranked.index,
        "probability": ranked.probability,
        "broader": [synset.name for synset in ensemble.labels[ranked.index].broader] or None,
    }


def _specific(node: Node, probability: float) -> Mapping[str, Any]:
    return {
        "label": node.label,
        "wnid": node.wnid,
        "index": node.index,
        "probability": probability,
        "classes": len(node.classes),
        "broader": node.broader or None,
    }
