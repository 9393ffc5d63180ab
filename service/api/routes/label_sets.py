"""Label sets of POST /classify, which the parameter `coverage` asks for."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from service.api.routes.label_options import prediction
from service.errors import NotCalibrated
from service.models import conformal
from service.models.conformal import Promise
from service.models.ensemble import Ensemble
from service.serving.predictor import PredictResponse
from service.serving.types import Answer
from service.settings import AUTO, Views

Coverage = Annotated[
    Annotated[float, Field(ge=0.5, le=0.999)] | SkipJsonSchema[None],
    Field(
        description="adds `label_set` to each image: the smallest set of labels that holds the "
        "true one with this probability; only of a model and views that are calibrated for it"
    ),
]


def promise(ensemble: Ensemble, views: Views, coverage: float | None) -> Promise | None:
    """Return what a request with this `coverage` is answered with; raises `NotCalibrated`."""
    if coverage is None:
        return None
    if views == AUTO:
        raise NotCalibrated(
            f"the views `{AUTO}` have no label sets: they depend on the load; ask for others"
        )
    return conformal.promise(ensemble, views, coverage)


def added(
    body: dict[str, Any], predicted: PredictResponse, promise: Promise | None
) -> dict[str, Any]:
    """Add a label set to each image in the body of a response."""
    if promise is None:
        return body
    sets = [_fields(predicted.ensemble, answer, promise) for answer in predicted.answers]
    if "results" not in body:
        return {**body, **sets[0]}
    results = zip(body["results"], sets, strict=True)
    return {**body, "results": [{**result, **added} for result, added in results]}


def _fields(ensemble: Ensemble, answer: object, promise: Promise) -> Mapping[str, Any]:
    """Return the fields to add to one image: none to an error."""
    if not isinstance(answer, Answer):
        return {}
    size = conformal.size(answer.probabilities, promise)
    why = conformal.abstention(size, len(ensemble.labels))
    ranked = () if why else ensemble.best(answer.probabilities, size)
    labels = [prediction(ensemble, one) for one in ranked]
    found = {"coverage": promise.level, "size": size, "labels": labels, "abstention": why}
    return {"label_set": found}
