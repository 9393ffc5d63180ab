"""POST /explain."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from service.api import problem_details
from service.api.routes.direct_route import DirectRoute
from service.api.routes.image_request import (
    ImageHeaders,
    ImageQuery,
    Received,
    Receiver,
    body,
    gone,
)
from service.errors import MalformedRequest, ServiceError
from service.imaging import activation_map
from service.imaging.activation_map import Activation
from service.imaging.crops import Box
from service.serving.predictor import EMPTY, ExplainRequest, PaintRequest
from service.serving.types import Explanation
from service.settings import FixedPlanName, Settings

PATH = "/explain"
VIEWS: FixedPlanName = "single"  # if a request names none

_PNG = "image/png"
_MAX_LABEL = 200  # characters of a label


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
    views: FixedPlanName
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


class ExplainQuery(ImageQuery):
    """Parameters of a request, in its query or its form."""

    views: Annotated[FixedPlanName, Field(description="the views whose maps are made")] = VIEWS
    label: Annotated[
        Annotated[str, Field(min_length=1, max_length=_MAX_LABEL)] | SkipJsonSchema[None],
        Field(
            description="WordNet id, name or index of the label to be explained; without, "
            "the most probable one"
        ),
    ] = None


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {_PNG: {"schema": {"type": "string", "format": "binary"}}}},
    **problem_details.documented(400, 404, 408, 413, 415, 422, 500, 501, 503, 504),
}


def router(receiver: Receiver, settings: Settings) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=DirectRoute)
    handler = _Handler(replace(receiver, bounds=replace(receiver.bounds, files=1)))
    routes.post(
        PATH,
        response_model=Explained,
        responses=_RESPONSES,
        openapi_extra=body(ExplainQuery, settings, max_files=1),
    )(handler.explain)
    return routes


@dataclass(frozen=True, slots=True)
class _Handler:
    """Explains the image of a request."""

    receiver: Receiver

    async def explain(
        self,
        request: Request,
        query: Annotated[ExplainQuery, Query()],
        headers: Annotated[ImageHeaders, Header()],
    ) -> Response:
        """Show which places of an image speak for a label, exactly: its class activation map.

        Send one image as to `/classify`. With `Accept: image/png` the answer is the image
        with a heat map over it, else the maps themselves.
        """
        async with self.receiver.receive(request, query, headers) as received:
            (upload,) = received.uploads
            if not upload.data:
                raise upload.error or MalformedRequest(EMPTY)
            return await self._explained(request, received, upload.data)

    async def _explained(
        self, request: Request, received: Received[ExplainQuery], image: bytes
    ) -> Response:
        model, query = received.model, received.query
        deadline = received.started + received.uploaded + received.seconds
        index = model.ensemble.find(query.label) if query.label else None
        with self._counted(query.views):
            seconds = deadline - time.monotonic()
            explanation = await model.explain(
                ExplainRequest(image, query.views, index, seconds, lambda: gone(request))
            )
        heat = activation_map.heat(explanation.activations)
        if _PNG in request.headers.get("accept", ""):
            seconds = deadline - time.monotonic()
            paint = PaintRequest(image, heat, seconds, lambda: gone(request))
            heatmap = await model.paint(paint)
            return Response(heatmap, media_type=_PNG)
        box = activation_map.hottest(heat)
        body = _explained(model.ensemble.name, query.views, explanation, box)
        return Response(body.model_dump_json(), media_type="application/json")

    @contextmanager
    def _counted(self, plan: FixedPlanName) -> Iterator[None]:
        """Count an image with its error, if any."""
        metrics = self.receiver.core.metrics
        try:
            yield
        except ServiceError as error:
            metrics.image(plan, error)
            raise
        metrics.image(plan)


def _explained(
    model: str, plan: FixedPlanName, explanation: Explanation, box: Box | None
) -> Explained:
    return Explained(
        model=model,
        views=plan,
        label=explanation.prediction.label,
        wnid=explanation.prediction.wnid,
        index=explanation.prediction.index,
        probability=explanation.prediction.probability,
        bias=explanation.activations[0].bias,
        maps=[_map(activation) for activation in explanation.activations],
        box=Region(**dataclasses.asdict(box)) if box else None,
    )


def _map(activation: Activation) -> Map:
    box = dataclasses.asdict(activation.box)
    return Map(**box, grid=activation.grid.tolist(), logit=activation.logit)
