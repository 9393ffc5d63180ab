"""POST /explain."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.api import parameters, problem_details
from service.api.routes.classify import Milliseconds, Model, ModelField, body, gone, left
from service.api.uploads import EMPTY, Bounds, Budget, read
from service.errors import MalformedRequest, ServiceError
from service.imaging import activation_map
from service.imaging.activation_map import Activation
from service.imaging.crops import Box
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry
from service.serving.types import Explanation
from service.settings import PlanName, Settings

PATH = "/explain"
VIEWS: PlanName = "single"  # if a request names none

_PNG = "image/png"
_LONGEST = 200  # characters of a label


class Region(BaseModel):
    """A part of the upright image, in shares of its width and height."""

    left: Annotated[float, Field(examples=[0.125])]
    top: Annotated[float, Field(examples=[0.0])]
    width: Annotated[float, Field(examples=[0.75])]
    height: Annotated[float, Field(examples=[1.0])]


class Map(Region):
    """What each place of a view, which shows this part, adds to the label's logit."""

    grid: Annotated[
        list[list[float]],
        Field(description="row by row; its mean and the bias are together the view's logit"),
    ]
    logit: float


class Explained(BaseModel):
    """Why a label: how the places of an image add to it."""

    model: str
    views: PlanName
    label: Annotated[str, Field(examples=["beagle"])]
    wnid: Annotated[str | None, Field(description="WordNet id", examples=["n02088364"])]
    index: Annotated[int, Field(description="place among the classes", examples=[162])]
    probability: Annotated[float, Field(ge=0, le=1, examples=[0.81])]
    bias: Annotated[float, Field(description="what the label has without any image")]
    maps: Annotated[list[Map], Field(description="one a view")]
    box: Annotated[
        Region | None,
        Field(description="around what adds over half of the most, by the mean of the maps"),
    ]


class Fields(BaseModel):
    """Form fields that may come in place of query parameters, and go before those."""

    label: Annotated[
        str | None, Field(min_length=1, max_length=_LONGEST, description="as in the query")
    ] = None
    model: ModelField = None
    views: PlanName | None = None


def router(
    model_registry: ModelRegistry, settings: Settings, budget: Budget, metrics: Metrics
) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    most_ms = int(settings.timeout_seconds * 1000)
    bounds = Bounds(settings.max_body_bytes, 1, settings.upload_timeout_seconds)

    @routes.post(
        PATH,
        response_model=Explained,
        responses={
            200: {"content": {_PNG: {"schema": {"type": "string", "format": "binary"}}}},
            **problem_details.documented(400, 404, 408, 413, 415, 422, 500, 501, 503, 504),
        },
        openapi_extra=body(1, Fields),
    )
    async def explain(
        request: Request,
        plan: Annotated[
            PlanName, Query(alias="views", description="the views whose maps are made")
        ] = VIEWS,
        model: Model = None,
        label: Annotated[
            str | None,
            Query(
                min_length=1,
                max_length=_LONGEST,
                description="WordNet id, name or index of the label to be explained; without, "
                "the most probable one",
            ),
        ] = None,
        x_timeout_ms: Milliseconds = most_ms,
    ) -> Response:
        """Show which places of an image speak for a label, exactly: its class activation map.

        Send one image as to `/classify`. With `Accept: image/png` the answer is the image
        with a heat map over it, else the maps themselves.
        """
        with contextlib.ExitStack() as held:
            classifier = held.enter_context(model_registry.use(model))
            share = held.enter_context(budget.share())
            started = time.monotonic()
            form = await read(request, bounds, share, Fields.model_fields)
            fields = parameters.parse(Fields, form.fields)
            if fields.model:
                classifier = held.enter_context(model_registry.use(fields.model))
            plan, label = fields.views or plan, fields.label or label
            (upload,) = form.uploads
            if not upload.data:
                raise MalformedRequest(EMPTY)
            read_in = time.monotonic() - started
            deadline = started + read_in + left(request, min(most_ms, x_timeout_ms), read_in)
            index = classifier.ensemble.find(label) if label else None
            with _counted(metrics, plan):
                found = await classifier.explain(
                    upload.data,
                    plan=plan,
                    index=index,
                    seconds=deadline - time.monotonic(),
                    gone=lambda: gone(request),
                )
            heat = activation_map.heat(found.activations)
            if _PNG in request.headers.get("accept", ""):
                drawn = await classifier.paint(
                    upload.data,
                    heat,
                    seconds=deadline - time.monotonic(),
                    gone=lambda: gone(request),
                )
                return Response(drawn, media_type=_PNG)
            name = classifier.ensemble.name
        told = _explained(name, plan, found, activation_map.hottest(heat))
        return Response(told.model_dump_json(), media_type="application/json")

    return routes


@contextlib.contextmanager
def _counted(metrics: Metrics, plan: PlanName) -> Iterator[None]:
    """Count an image by what comes of it."""
    try:
        yield
    except ServiceError as error:
        metrics.image(plan, error)
        raise
    metrics.image(plan)


def _explained(model: str, plan: PlanName, found: Explanation, box: Box | None) -> Explained:
    return Explained(
        model=model,
        views=plan,
        label=found.prediction.label,
        wnid=found.prediction.wnid,
        index=found.prediction.index,
        probability=found.prediction.probability,
        bias=found.activations[0].bias,
        maps=[_map(one) for one in found.activations],
        box=Region(**dataclasses.asdict(box)) if box else None,
    )


def _map(one: Activation) -> Map:
    return Map(**dataclasses.asdict(one.box), grid=one.grid.tolist(), logit=one.logit)
