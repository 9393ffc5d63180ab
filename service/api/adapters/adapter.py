"""The adapter: what other servers' APIs share, from a request in their shape to its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field
from pydantic_core import to_json
from starlette.responses import Response

from service.api import json_body, problem_details
from service.api.fetch.images import unsupported
from service.api.json_body import Shape
from service.api.middleware.security_headers import is_background
from service.api.open_inference.handler import all_or_error
from service.api.routes.classify import ClassifyHeaders
from service.api.routes.image_request import ImageQuery, Received, Receiver, gone
from service.api.uploads import RAW
from service.models.ensemble import Prediction
from service.serving.core import Core
from service.serving.predictor import AdmitRequest, PredictRequest
from service.settings import Settings

ERRORS = problem_details.documented(400, 404, 408, 413, 415, 422, 500, 503, 504)
BINARY = {"schema": {"type": "string", "format": "binary"}}
_UNTYPED = frozenset({"", "application/x-www-form-urlencoded"})  # of curl's -T and --data-binary


class RankingQuery(ImageQuery):
    """Parameters of a request: a model, and how many of its labels."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = 5


@dataclass(frozen=True, slots=True)
class Ranked:
    """The most probable labels of each image, and headers of the response."""

    rankings: Sequence[Sequence[Prediction]]
    headers: Mapping[str, str]

    def response(self, body: Any) -> Response:
        """Make the response of a body that has been made of the labels."""
        return Response(to_json(body), headers={**self.headers}, media_type=json_body.MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Classifies the images of requests of any shape, as /classify does."""

    receiver: Receiver
    settings: Settings
    is_leaving: Callable[[], bool]

    @property
    def core(self) -> Core:
        """What all routes share."""
        return self.receiver.core

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here now."""
        return self.core.status.is_ready and not self.is_leaving()

    async def predict(
        self,
        request: Request,
        query: RankingQuery,
        headers: ClassifyHeaders,
        *,
        shape: Shape = json_body.ordinary,
        max_images: int = 1,
    ) -> Ranked:
        """Rank the labels of each image; JSON has one `shape`.

        Raises what a request is refused with, before its body is read where that is known, or the
        error of the first image that fails.
        """
        background, settings = is_background(headers.priority), self.settings
        seconds = min(settings.timeout_seconds, (headers.timeout_ms or float("inf")) / 1000)
        asked = AdmitRequest(settings.views, seconds, background=background)
        await self.core.admit(query.model, asked)
        bounds = replace(self.receiver.bounds, files=max_images)
        receiver = replace(self.receiver, bounds=bounds, shape=shape, fetch=unsupported)
        async with receiver.receive(_typed(request), query, headers) as received:
            self.core.metrics.stage("upload", received.uploaded, background=background)
            predicted = await received.model.predict(
                PredictRequest(
                    [*_images(received)],
                    settings.views,
                    received.query.top_k,
                    received.seconds,
                    background=background,
                    gone=lambda: gone(request),
                )
            )
        answers = all_or_error(predicted.answers)
        total = received.record(request, predicted.plan, answers)
        rankings = [answer.predictions for answer in answers]
        return Ranked(rankings, total.headers(caches=settings.cache_bytes > 0))


def _images(received: Received[Any]) -> Sequence[bytes]:
    """Give the images; raises the error of the first that cannot be read."""
    for upload in received.uploads:
        if upload.error:
            raise upload.error
    return [upload.data for upload in received.uploads]


def _typed(request: Request) -> Request:
    """Take a body for an image if it has no Content-Type, or the one that curl sends by default."""
    if request.headers.get("content-type", "").lower() not in _UNTYPED:
        return request
    others = [field for field in request.scope["headers"] if field[0] != b"content-type"]
    headers = [*others, (b"content-type", RAW.encode())]
    return Request({**request.scope, "headers": headers}, request.receive)
