"""POST /classify."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json
from starlette.responses import Response

from service.api import problem_details
from service.api.form import Upload
from service.api.middleware.security_headers import is_background
from service.api.problem_details import Problem
from service.api.routes import answer_stream, label_sets
from service.api.routes.answer_stream import LinesResponse, predict_each
from service.api.routes.direct_route import DirectRoute
from service.api.routes.image_request import (
    PRIORITY,
    ImageHeaders,
    Received,
    Receiver,
    body,
    gone,
)
from service.api.routes.label_options import (
    SPECIFIC,
    Broader,
    LabelOptions,
    LabelQuery,
    SpecificLabel,
)
from service.api.uploads import has_fields
from service.errors import ServiceError
from service.models import conformal
from service.models.conformal import Promise
from service.serving.predictor import PredictRequest, PredictResponse
from service.serving.types import Answer
from service.settings import PlanName, Settings, Views


class Prediction(BaseModel):
    """A label and how probable it is."""

    label: Annotated[str, Field(examples=["beagle"])]
    wnid: Annotated[str | None, Field(description="WordNet id", examples=["n02088364"])]
    index: Annotated[int, Field(description="place among the classes", examples=[162])]
    probability: Annotated[float, Field(ge=0, le=1, examples=[0.81])]
    broader: Broader


class LabelSet(BaseModel):
    """Labels one of which is the true one with a probability of `coverage`."""

    coverage: Annotated[float, Field(description="of the set, at least the wanted one")]
    size: Annotated[int, Field(description="how many labels are in the set", examples=[2])]
    labels: Annotated[list[Prediction], Field(description="of the set; none with an `abstention`")]
    abstention: Annotated[
        conformal.Abstention | None,
        Field(description="why the set says nothing: no label is probable enough, or too many are"),
    ]


ViewCount = Annotated[int, Field(description="views that were looked at", examples=[2])]


class Answered(BaseModel):
    """What every response says of the model."""

    model: Annotated[str, Field(examples=["bvlc_googlenet"])]
    version: Annotated[str, Field(description="of the model", examples=["1"])]
    notice: Annotated[str | None, Field(description="what has to be known of the model")] = None
    views: PlanName


class One(Answered):
    """The answer to one image."""

    view_count: ViewCount
    predictions: list[Prediction]
    specific: Annotated[SpecificLabel | None, SPECIFIC] = None
    label_set: LabelSet | None = None


class Result(BaseModel):
    """One of several images: its ranking, or what is wrong with it."""

    filename: str | None = None
    view_count: ViewCount | None = None
    predictions: list[Prediction] | None = None
    specific: Annotated[SpecificLabel | None, SPECIFIC] = None
    label_set: LabelSet | None = None
    error: Problem | None = None


class Several(Answered):
    """The answer to several images, in their order."""

    results: list[Result]


PATH = "/classify"


class ClassifyQuery(LabelQuery):
    """Parameters of a request, in its query or its form."""

    views: Annotated[
        Views | SkipJsonSchema[None],
        Field(
            description="views of each image; more cost more; auto: as many of single, ten and "
            "paper as its time and the present load allow, which the answer tells; adaptive: "
            "those of ten, adaptive:paper: those of paper, as many as an image needs; default: "
            "the service's"
        ),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=1000, description="how many labels")] = 5
    coverage: label_sets.Coverage = None


class ClassifyHeaders(ImageHeaders):
    """Headers of a request."""

    priority: Annotated[
        str | SkipJsonSchema[None], Field(description=PRIORITY, examples=["u=7"])
    ] = None


_CACHE = {
    "schema": {"type": "string"},
    "description": "whether all images' answers were kept, as RFC 9211 has it; only with a cache",
    "example": "googlenet-service; hit",
}
_TIMING = {
    "schema": {"type": "string"},
    "description": "milliseconds of each stage, and the rows that shared the batch; of several"
    " images, the most",
    "example": 'decode;dur=2.10, queue;dur=0.30, inference;dur=20.00, batch;desc="16 rows"',
}
HEADERS = {"Server-Timing": _TIMING, "Cache-Status": _CACHE}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS, "content": answer_stream.CONTENT},
    **problem_details.documented(400, 404, 408, 409, 413, 415, 422, 500, 503, 504),
}


def router(receiver: Receiver, settings: Settings) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(route_class=DirectRoute)
    handler = _Handler(receiver, settings)
    routes.post(
        PATH,
        response_model=One | Several,
        responses=_RESPONSES,
        openapi_extra=body(ClassifyQuery, settings),
    )(handler.classify)
    return routes


@dataclass(frozen=True, slots=True)
class _Work:
    """What is asked for the images of a request."""

    predict: PredictRequest
    options: LabelOptions
    promise: Promise | None


@dataclass(frozen=True, slots=True)
class _Handler:
    """Classifies the images of a request."""

    receiver: Receiver
    settings: Settings

    async def classify(
        self,
        request: Request,
        query: Annotated[ClassifyQuery, Query()],
        headers: Annotated[ClassifyHeaders, Header()],
    ) -> Response:
        """Name what is on an image, or on several; a bad one never spoils the others.

        Send multipart/form-data with one or more `file` parts, JSON with `images` in base64
        or, if the service fetches those, by URL, one image as the body, or a zip or tar of
        images as the body. One image answers with `predictions` or a problem; several with
        `results` in their order, each with its own `predictions` or `error`. With `Accept:
        application/x-ndjson` each image's answer is a line that is sent when it is ready, in
        any order.
        """
        metrics, background = self.receiver.core.metrics, is_background(headers.priority)
        if query.coverage is not None and not has_fields(request):  # refuse it before the body
            views = query.views or self.settings.views
            with self.receiver.core.use(query.model) as model:
                label_sets.promise(model.ensemble, views, query.coverage)
        if answer_stream.is_accepted(request):
            lines = self._lines(request, query, headers)
            return await LinesResponse.of(lines, metrics)
        async with self.receiver.receive(request, query, headers) as received:
            work = self._work(request, received, background=background)
            predicted = await received.model.predict(work.predict)
        uploads, options, promise = received.uploads, work.options, work.promise
        if len(uploads) > 1:  # their errors are parts of the response
            for error in predicted.errors:
                metrics.rejected(error, background=background)
        total = received.record(request, predicted.plan, predicted.answers)
        described = _body(request, uploads, predicted, options)
        content = to_json(label_sets.added(described, predicted, promise))
        fields = total.headers(caches=self.settings.cache_bytes > 0)
        return Response(content, headers=fields, media_type="application/json")

    def _work(
        self, request: Request, received: Received[ClassifyQuery], *, background: bool
    ) -> _Work:
        """Derive what is to be done with the images; raises what a parameter is refused with."""
        chosen, ensemble = received.query, received.model.ensemble
        options = LabelOptions.of(chosen, ensemble, chosen.top_k)
        self.receiver.core.metrics.stage("upload", received.uploaded, background=background)
        views = chosen.views or self.settings.views
        promise = label_sets.promise(ensemble, views, chosen.coverage)
        predict = PredictRequest(
            received.images,
            views,
            chosen.top_k,
            received.seconds,
            background=background,
            gone=lambda: gone(request),
        )
        return _Work(predict, options, promise)

    async def _lines(
        self, request: Request, query: ClassifyQuery, headers: ClassifyHeaders
    ) -> AsyncGenerator[bytes]:
        """Give each image's line when it is ready; see `predict_each`."""
        metrics, background = self.receiver.core.metrics, is_background(headers.priority)
        answers: list[Answer | ServiceError] = []
        async with self.receiver.receive(request, query, headers) as received:
            work = self._work(request, received, background=background)
            async with aclosing(predict_each(received.model, work.predict)) as images:
                async for index, predicted in images:
                    answers += predicted.answers
                    for error in predicted.errors:
                        metrics.rejected(error, background=background)
                    line = _line(request, index, received.uploads[index], predicted, work)
                    yield to_json(line) + b"\n"
        received.record(request, predicted.plan, answers)


def _line(
    request: Request, index: int, upload: Upload, predicted: PredictResponse, work: _Work
) -> dict[str, Any]:
    """Make an image's line: the answer to it alone, or its error."""
    place = {"index": index, "filename": upload.filename}
    if predicted.errors:
        return {**place, **_result(upload, predicted.errors[0], request, work.options)}
    body = _body(request, [upload], predicted, work.options)
    return {**place, **label_sets.added(body, predicted, work.promise)}


def _body(
    request: Request, uploads: Sequence[Upload], predicted: PredictResponse, options: LabelOptions
) -> dict[str, Any]:
    """Make the body of a response, as `One` or `Several`; raises the error of a single image."""
    answers, about = predicted.answers, describe_model(predicted)
    if len(answers) > 1:
        pairs = zip(uploads, answers, strict=True)
        results = [_result(*pair, request, options) for pair in pairs]
        return {**about, "results": results}
    (answer,) = answers
    if isinstance(answer, ServiceError):
        raise answer
    return {**about, "view_count": answer.view_count, **options.described(answer)}


def describe_model(predicted: PredictResponse) -> dict[str, Any]:
    """Describe the model, as `Answered`."""
    ensemble = predicted.ensemble
    notice = {"notice": ensemble.notice} if ensemble.notice else {}
    named = {"model": ensemble.name, "version": ensemble.version}
    return {**named, **notice, "views": predicted.plan}


def _result(
    upload: Upload, answer: Answer | ServiceError, request: Request, options: LabelOptions
) -> dict[str, Any]:
    named = {"filename": upload.filename}
    if isinstance(answer, ServiceError):
        error = problem_details.of(answer, request).model_dump(exclude_none=True)
        return {**named, "error": error}
    return {**named, "view_count": answer.view_count, **options.described(answer)}
