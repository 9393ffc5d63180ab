"""POST /classify."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from opentelemetry.trace import TracerProvider
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.api import problem_details
from service.api.middleware.request_log import note
from service.api.middleware.security_headers import is_background
from service.api.problem_details import Problem
from service.api.routes.image_request import (
    Milliseconds,
    Model,
    ModelField,
    Parameters,
    Priority,
    Received,
    Receiver,
    body,
    gone,
)
from service.api.tracing import Stages
from service.api.uploads import EMPTY, Bounds, Budget, Upload
from service.errors import MalformedRequest, ServiceError
from service.models.ensemble import Ensemble
from service.serving import request_stats
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry
from service.serving.shadow import ShadowCandidate
from service.serving.types import Answer
from service.settings import AUTO, PlanName, Settings, Views


class Prediction(BaseModel):
    """A label and how probable it is."""

    label: Annotated[str, Field(examples=["beagle"])]
    wnid: Annotated[str | None, Field(description="WordNet id", examples=["n02088364"])]
    index: Annotated[int, Field(description="place among the classes", examples=[162])]
    probability: Annotated[float, Field(ge=0, le=1, examples=[0.81])]


class _Answered(BaseModel):
    model: Annotated[str, Field(examples=["bvlc_googlenet"])]
    version: Annotated[str, Field(description="of the model", examples=["1"])]
    notice: Annotated[str | None, Field(description="what has to be known of the model")] = None
    views: PlanName


class One(_Answered):
    """The answer to one image."""

    predictions: list[Prediction]


class Result(BaseModel):
    """One of several images: its ranking, or what is wrong with it."""

    filename: str | None = None
    predictions: list[Prediction] | None = None
    error: Problem | None = None


class Several(_Answered):
    """The answer to several images, in their order."""

    results: list[Result]


PATH = "/classify"

ViewsQuery = Annotated[
    Views,
    Query(
        description="views of each image; more cost more; auto: as many of single, ten "
        "and paper as its time and the present load allow, which the answer tells"
    ),
]
TopKQuery = Annotated[int, Query(ge=1, le=1000, description="how many labels")]
TopK = Annotated[int, Field(ge=1, le=1000, description="how many labels")]


class Fields(BaseModel):
    """Form fields that may come in place of query parameters, and go before those."""

    model: ModelField = None
    top_k: TopK | None = None
    views: Views | None = None


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
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"Server-Timing": _TIMING, "Cache-Status": _CACHE}},
    **problem_details.documented(400, 404, 408, 413, 415, 422, 500, 503, 504),
}


def router(  # noqa: PLR0913, PLR0917 - all that it works with
    model_registry: ModelRegistry,
    shadow: ShadowCandidate,
    settings: Settings,
    budget: Budget,
    metrics: Metrics,
    tracer_provider: TracerProvider | None,
) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    receiver = Receiver(model_registry, budget, Bounds.of(settings), Fields)
    caches = settings.cache_bytes > 0
    handler = _Handler(receiver, shadow, metrics, Stages(tracer_provider), caches=caches)
    max_ms = int(settings.timeout_seconds * 1000)

    @routes.post(
        PATH,
        response_model=One | Several,
        responses=_RESPONSES,
        openapi_extra=body(settings.max_images_per_request, Fields),
    )
    async def classify(  # noqa: PLR0913, PLR0917 - all parameters of the request
        request: Request,
        views: ViewsQuery = settings.views,
        model: Model = None,
        top_k: TopKQuery = 5,
        x_timeout_ms: Milliseconds = max_ms,
        priority: Priority = None,
    ) -> Response:
        """Name what is on an image, or on several; a bad one never spoils the others.

        Send multipart/form-data with one or more `file` parts, or one image as the body.
        One image answers with `predictions` or a problem; several with `results` in their
        order, each with its own `predictions` or `error`.
        """
        timeout_ms = min(max_ms, x_timeout_ms)
        chosen = _Parameters(model, timeout_ms, views, top_k, is_background(priority))
        return await handler.respond(request, chosen)

    return routes


@dataclass(frozen=True, slots=True)
class _Parameters(Parameters):
    views: Views
    top_k: int
    background: bool


@dataclass(frozen=True, slots=True)
class _Handler:
    """Classifies the images of a request."""

    receiver: Receiver
    shadow: ShadowCandidate
    metrics: Metrics
    stages: Stages
    caches: bool  # whether answers are kept

    async def respond(self, request: Request, chosen: _Parameters) -> Response:
        async with self.receiver.receive(request, chosen) as received:
            chosen, uploads = received.parameters, received.uploads
            self.metrics.stage("upload", received.uploaded, background=chosen.background)
            images = [upload.data for upload in uploads if upload.data]
            plan, classified = await _classified(request, received, images)
            about = _about(received.classifier.ensemble, plan)
        if chosen.model in {None, self.receiver.model_registry.default}:
            self.shadow.offer(images, plan, classified)
        answers = _with_empty(uploads, classified)
        self._count(plan, answers, background=chosen.background)
        self.stages.trace(received.started, received.uploaded, answers)
        total = request_stats.add_up(answers)
        note(request.scope, total.notes(plan, received.uploaded))
        body = _body(request, about, uploads, answers)
        headers = total.headers(caches=self.caches)
        content = body.model_dump_json(exclude_unset=True)
        return Response(content, headers=headers, media_type="application/json")

    def _count(
        self, plan: PlanName, answers: Sequence[Answer | ServiceError], *, background: bool
    ) -> None:
        """Count each image, and the errors that are part of a response with several."""
        request_stats.count(self.metrics, plan, answers, background=background)
        for answer in answers if len(answers) > 1 else ():
            if isinstance(answer, ServiceError):
                self.metrics.rejected(answer, background=background)


async def _classified(
    request: Request, received: Received[_Parameters], images: Sequence[bytes]
) -> tuple[PlanName, Sequence[Answer | ServiceError]]:
    """Classify the images; give the view plan, too, which `auto` leaves to the classifier."""
    classifier, chosen, seconds = received.classifier, received.parameters, received.seconds
    plan = (
        classifier.choose_views(len(images), seconds, background=chosen.background)
        if chosen.views == AUTO
        else chosen.views
    )
    if not images:
        return plan, []
    answers = await classifier.classify(
        images,
        plan=plan,
        top_k=chosen.top_k,
        seconds=seconds,
        background=chosen.background,
        gone=lambda: gone(request),
    )
    return plan, answers


def _with_empty(
    uploads: Sequence[Upload], classified: Iterable[Answer | ServiceError]
) -> list[Answer | ServiceError]:
    """Put the errors of empty images between the answers, in the uploads' order."""
    answers = iter(classified)
    return [next(answers) if upload.data else MalformedRequest(EMPTY) for upload in uploads]


def _about(ensemble: Ensemble, plan: PlanName) -> dict[str, Any]:
    """Describe the model; `exclude_unset` leaves out a notice that it does not have."""
    notice = {"notice": ensemble.notice} if ensemble.notice else {}
    return {"model": ensemble.name, "version": ensemble.version, **notice, "views": plan}


def _body(
    request: Request,
    about: dict[str, Any],
    uploads: Sequence[Upload],
    answers: Sequence[Answer | ServiceError],
) -> BaseModel:
    """Make the body of a response; raises the error of a single image."""
    if len(answers) > 1:
        results = [_result(*pair, request) for pair in zip(uploads, answers, strict=True)]
        return Several(**about, results=results)
    (answer,) = answers
    if isinstance(answer, ServiceError):
        raise answer
    return One(**about, predictions=_predictions(answer))


def _result(upload: Upload, answer: Answer | ServiceError, request: Request) -> Result:
    if isinstance(answer, ServiceError):
        return Result(filename=upload.filename, error=problem_details.of(answer, request))
    return Result(filename=upload.filename, predictions=_predictions(answer))


def _predictions(answer: Answer) -> list[Prediction]:
    return [
        Prediction(label=p.label, wnid=p.wnid, index=p.index, probability=p.probability)
        for p in answer.predictions
    ]
