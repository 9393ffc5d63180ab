"""POST /embed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.responses import Response

from service.api import problem_details
from service.api.form import Upload
from service.api.middleware.security_headers import is_background
from service.api.problem_details import Problem
from service.api.routes.classify import HEADERS, Answered, ClassifyHeaders, describe_model
from service.api.routes.direct_route import DirectRoute
from service.api.routes.image_request import ImageQuery, Received, Receiver, body, gone
from service.errors import ServiceError
from service.models.ensemble import Features
from service.serving.predictor import PredictRequest, PredictResponse
from service.serving.types import Answer
from service.settings import FixedPlanName, Settings

PATH = "/embed"
VIEWS: FixedPlanName = "single"  # if a request names none


class EmbeddedImage(Answered):
    """The features of one image."""

    features: Annotated[
        list[float],
        Field(description="float32, one a channel: GoogLeNet has 1024", examples=[[0.31, 0.0]]),
    ]


class EmbeddedResult(BaseModel):
    """One of several images: its features, or what is wrong with it."""

    filename: str | None = None
    features: list[float] | None = None
    error: Problem | None = None


class EmbeddedImages(Answered):
    """The features of several images, in their order."""

    results: list[EmbeddedResult]


class EmbedQuery(ImageQuery):
    """Parameters of a request, in its query or its form."""

    views: Annotated[
        FixedPlanName, Field(description="views of each image, whose features are averaged")
    ] = VIEWS
    normalise: Annotated[
        bool, Field(description="divide the features by their Euclidean (L2) norm")
    ] = False


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    **problem_details.documented(400, 404, 408, 413, 415, 422, 500, 501, 503, 504),
}


def router(receiver: Receiver, settings: Settings) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=DirectRoute)
    handler = _Handler(receiver, caches=settings.cache_bytes > 0)
    routes.post(
        PATH,
        response_model=EmbeddedImage | EmbeddedImages,
        responses=_RESPONSES,
        openapi_extra=body(EmbedQuery, settings),
    )(handler.embed)
    return routes


@dataclass(frozen=True, slots=True)
class _Handler:
    """Computes the features of the images of a request."""

    receiver: Receiver
    caches: bool

    async def embed(
        self,
        request: Request,
        query: Annotated[EmbedQuery, Query()],
        headers: Annotated[ClassifyHeaders, Header()],
    ) -> Response:
        """Compute the features of an image, or of several: for search, duplicates, few-shot heads.

        They are what the network's last layer is applied to, averaged over the views. Send images
        as to `/classify`; similar images have features with a large cosine.
        """
        metrics, background = self.receiver.core.metrics, is_background(headers.priority)
        async with self.receiver.receive(request, query, headers) as received:
            metrics.stage("upload", received.uploaded, background=background)
            wanted = _request(request, received, background=background)
            predicted = await received.model.predict(wanted)
        if len(received.uploads) > 1:  # their errors are parts of the response
            for error in predicted.errors:
                metrics.rejected(error, background=background)
        total = received.record(request, predicted.plan, predicted.answers)
        content = _body(request, received.uploads, predicted, normalise=received.query.normalise)
        fields = total.headers(caches=self.caches)
        return Response(to_json(content), headers=fields, media_type="application/json")


def _request(
    request: Request, received: Received[EmbedQuery], *, background: bool
) -> PredictRequest:
    return PredictRequest(
        received.images,
        received.query.views,
        top_k=1,
        seconds=received.seconds,
        background=background,
        features=True,
        gone=lambda: gone(request),
    )


def _body(
    request: Request, uploads: Sequence[Upload], predicted: PredictResponse, *, normalise: bool
) -> dict[str, Any]:
    """Make the body of a response; raises the error of a single image."""
    model = describe_model(predicted)
    if len(uploads) == 1:
        if predicted.errors:
            raise predicted.errors[0]
        return {**model, **_described(predicted.answers[0], request, normalise=normalise)}
    results = [
        {"filename": upload.filename, **_described(answer, request, normalise=normalise)}
        for upload, answer in zip(uploads, predicted.answers, strict=True)
    ]
    return {**model, "results": results}


def _described(
    answer: Answer | ServiceError, request: Request, *, normalise: bool
) -> dict[str, Any]:
    if isinstance(answer, ServiceError):
        return {"error": problem_details.of(answer, request).model_dump(exclude_none=True)}
    assert answer.features is not None  # noqa: S101 - for mypy: they were asked for
    features = _normalised(answer.features) if normalise else answer.features
    return {"features": features.tolist()}


def _normalised(features: Features) -> Features:
    """Divide features by their norm, unless that is 0."""
    norm = np.linalg.norm(features)
    return (features / norm).astype(np.float32) if norm else features
