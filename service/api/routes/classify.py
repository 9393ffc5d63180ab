"""POST /classify."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from opentelemetry.trace import TracerProvider
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from service.api import parameters, problem_details
from service.api.middleware.request_log import note
from service.api.middleware.security_headers import is_background
from service.api.problem_details import Problem
from service.api.tracing import Stages
from service.api.uploads import EMPTY, FIELD, RAW, Bounds, Budget, Upload, read
from service.errors import MalformedRequest, ServiceError
from service.imaging import image_decoder
from service.models.ensemble import Ensemble
from service.serving import request_stats as summed
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry
from service.serving.shadow import ShadowCandidate
from service.serving.types import Answer
from service.settings import AUTO, MODEL, PlanName, Settings, Views


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

Model = Annotated[
    str | None, Query(pattern=rf"^{MODEL}$", description="which of the models that are served")
]
ModelField = Annotated[str | None, Field(pattern=rf"^{MODEL}$", description="as in the query")]
TopK = Annotated[int, Field(ge=1, le=1000, description="how many labels")]


class Fields(BaseModel):
    """Form fields that may come in place of query parameters, and go before those."""

    model: ModelField = None
    top_k: TopK | None = None
    views: Views | None = None


Milliseconds = Annotated[
    int, Header(ge=1, description="its own deadline, from its head on; at most the server's")
]

Priority = Annotated[
    str | SkipJsonSchema[None],  # a header that is there is no null
    Header(
        description="u=7 (RFC 9218): nobody waits for this, so let others pass",
        examples=["u=7"],
    ),
]

_DEADLINE = "x-timeout-ms"
_BINARY = {"type": "string", "format": "binary"}
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


def body(max_files: int, fields: type[BaseModel]) -> dict[str, Any]:
    """Describe the request's body as OpenAPI does; FastAPI cannot, since we read it ourselves."""
    images = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": max_files}
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: images, **_properties(fields)},
        "additionalProperties": False,
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                **{kind: {"schema": _BINARY} for kind in (*image_decoder.MEDIA_TYPES, RAW)},
            },
        }
    }


def _properties(fields: type[BaseModel]) -> dict[str, Any]:
    """Describe form fields, which are there or not, and never null."""
    described = fields.model_json_schema()["properties"]
    return {
        name: next(one for one in schema["anyOf"] if one != {"type": "null"})
        for name, schema in described.items()
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
    stages = Stages(tracer_provider)
    most_ms = int(settings.timeout_seconds * 1000)
    bounds = Bounds(
        settings.max_body_bytes, settings.max_images_per_request, settings.upload_timeout_seconds
    )

    @routes.post(
        PATH,
        response_model=One | Several,
        responses={
            200: {"headers": {"Server-Timing": _TIMING, "Cache-Status": _CACHE}},
            **problem_details.documented(400, 404, 408, 413, 415, 422, 500, 503, 504),
        },
        openapi_extra=body(settings.max_images_per_request, Fields),
    )
    async def classify(  # noqa: PLR0913, PLR0917 - all that may be asked
        request: Request,
        views: Annotated[
            Views,
            Query(
                description="views of each image; more cost more; auto: as many of single, ten "
                "and paper as its time and the present load allow, which the answer tells"
            ),
        ] = settings.views,
        model: Model = None,
        top_k: Annotated[int, Query(ge=1, le=1000, description="how many labels")] = 5,
        x_timeout_ms: Milliseconds = most_ms,
        priority: Priority = None,
    ) -> Response:
        """Name what is on an image, or on several; a bad one never spoils the others.

        Send multipart/form-data with one or more `file` parts, or one image as the body.
        One image answers with `predictions` or a problem; several with `results` in their
        order, each with its own `predictions` or `error`.
        """
        with ExitStack() as held:
            classifier = held.enter_context(model_registry.use(model))
            share = held.enter_context(budget.share())
            started = time.monotonic()
            form = await read(request, bounds, share, Fields.model_fields)
            fields = parameters.parse(Fields, form.fields)
            if fields.model:
                model = fields.model
                classifier = held.enter_context(model_registry.use(model))
            uploaded = time.monotonic() - started
            background = is_background(priority)
            metrics.stage("upload", uploaded, background=background)
            seconds = left(request, min(most_ms, x_timeout_ms), uploaded)
            uploads, images = form.uploads, [one.data for one in form.uploads if one.data]
            chosen = fields.views or views
            plan = (
                classifier.choose_views(len(images), seconds, background=background)
                if chosen == AUTO
                else chosen
            )
            found = (
                await classifier.classify(
                    images,
                    plan=plan,
                    top_k=fields.top_k or top_k,
                    seconds=seconds,
                    background=background,
                    gone=lambda: gone(request),
                )
                if images
                else []
            )
            about = _about(classifier.ensemble, plan)
        if model in {None, model_registry.default}:
            shadow.offer(images, plan, found)
        answers = _of_each(uploads, found)
        summed.count(metrics, plan, answers, background=background)
        stages.trace(started, uploaded, answers)
        total = summed.add_up(answers)
        note(request.scope, total.notes(plan, uploaded))
        if len(answers) == 1:
            first = answers[0]
            if isinstance(first, ServiceError):
                raise first
            body: BaseModel = One(**about, predictions=_predictions(first))
        else:
            for answer in answers:
                if isinstance(answer, ServiceError):
                    metrics.rejected(answer, background=background)
            results = [_result(*pair, request) for pair in zip(uploads, answers, strict=True)]
            body = Several(**about, results=results)
        return Response(
            body.model_dump_json(exclude_unset=True),
            media_type="application/json",
            headers=total.headers(caches=settings.cache_bytes > 0),
        )

    return routes


def _of_each(
    uploads: Sequence[Upload], found: Iterable[Answer | ServiceError]
) -> list[Answer | ServiceError]:
    """Put the answers beside the errors of the images that are empty, in the uploads' order."""
    coming = iter(found)
    return [next(coming) if one.data else MalformedRequest(EMPTY) for one in uploads]


def _about(ensemble: Ensemble, plan: PlanName) -> dict[str, Any]:
    """Say whose answer it is; `exclude_unset` leaves out a notice that nobody gave."""
    notice = {"notice": ensemble.notice} if ensemble.notice else {}
    return {"model": ensemble.name, "version": ensemble.version, **notice, "views": plan}


def left(request: Request, milliseconds: int, uploaded: float) -> float:
    """Give the seconds that are left after an upload that took so long.

    A deadline is the caller's, whose clock has run since; ours is for our own work.
    """
    return milliseconds / 1000 - (uploaded if _DEADLINE in request.headers else 0.0)


async def gone(request: Request) -> None:
    """Return when the caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _predictions(answer: Answer) -> list[Prediction]:
    return [
        Prediction(label=p.label, wnid=p.wnid, index=p.index, probability=p.probability)
        for p in answer.predictions
    ]


def _result(upload: Upload, answer: Answer | ServiceError, request: Request) -> Result:
    if isinstance(answer, ServiceError):
        return Result(filename=upload.filename, error=problem_details.of(answer, request))
    return Result(filename=upload.filename, predictions=_predictions(answer))
