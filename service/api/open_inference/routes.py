"""The Open Inference Protocol over HTTP: what KServe's and Triton's clients call."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from opentelemetry.trace import TracerProvider
from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from service.api import parameters, problem_details
from service.api.middleware.request_log import note
from service.api.middleware.security_headers import is_background
from service.api.open_inference import codec
from service.api.open_inference.codec import HEADER_LENGTH, Answered
from service.api.open_inference.handler import Inference, named
from service.api.routes.classify import Priority, gone
from service.api.tracing import Stages
from service.api.uploads import RAW, Bounds, Budget, whole
from service.errors import InvalidParameter, MalformedRequest
from service.models.ensemble import Ensemble
from service.serving import request_stats
from service.settings import MODEL

MODELS = "/v2/models/{name}"
VERSION = MODELS + "/versions/{version}"
INFER = MODELS + "/infer"
INFER_VERSION = VERSION + "/infer"
INDEX = "/v2/repository/index"

_VERSION = r"[A-Za-z0-9._,-]{1,256}"
_INFER = re.compile(rf"/v2/models/(?P<name>{MODEL})(?:/versions/(?P<version>{_VERSION}))?/infer")
_JSON = "application/json"
_MOST_OF_INDEX = 4096  # bytes of a request for the index

Name = Annotated[str, Path(pattern=rf"^{MODEL}$", description="a model that is served")]
Version = Annotated[str, Path(pattern=rf"^{_VERSION}$", description="its version")]
HeaderLength = Annotated[
    Annotated[str, Field(pattern=r"^[0-9]{1,12}$")]
    | SkipJsonSchema[None],  # a header that is there is no null
    Header(
        alias=HEADER_LENGTH,
        description="bytes of the JSON, where binary tensors follow it",
    ),
]


class Live(BaseModel):
    """Whether the server goes on living."""

    live: bool


class Ready(BaseModel):
    """Whether requests should be sent."""

    ready: bool


class ModelReady(Ready):
    """Whether requests should be sent to a model."""

    name: str


class IndexRequest(codec.Strict):
    """Which models to list; there is one repository, whose name is ignored."""

    ready: Annotated[bool, Field(description="only those that are ready")] = False
    repository_name: str = ""


class IndexedModel(BaseModel):
    """A model that is served, and whether it is ready."""

    name: str
    version: str
    state: Annotated[str, Field(examples=["READY"], description="READY or UNAVAILABLE")]
    reason: Annotated[str, Field(description="why it is not ready")]


class Server(BaseModel):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class Described(BaseModel):
    """A tensor; -1 is any size."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    shape: Annotated[list[int], Field(examples=[[-1]])]


class Model(BaseModel):
    """What a model takes, one of its `inputs`, and what it answers."""

    name: str
    versions: list[str]
    platform: Annotated[str, Field(examples=[codec.PLATFORM])]
    inputs: list[Described]
    outputs: list[Described]


class Output(BaseModel):
    """One tensor of an answer; its values are `data`, or binary after the JSON."""

    name: Annotated[str, Field(examples=[codec.OUTPUT])]
    datatype: Annotated[str, Field(examples=["FP32"])]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class Answer(BaseModel):
    """What a request is answered with."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[Output]


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UNKNOWN = problem_details.documented(404, 422, template=MODELS)
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "content": {RAW: _BINARY}},
    400: {"model": problem_details.Failure},
    **problem_details.documented(404, 408, 413, 415, 422, 500, 503, 504, template=MODELS),
}

_LISTED: dict[int | str, dict[str, Any]] = {
    400: {"model": problem_details.Failure},
    **problem_details.documented(408, 413, 415, 422, 503, template=INDEX),
}


def _failing(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, 503: {"model": model, "description": "Service Unavailable"}}


def _body() -> dict[str, Any]:
    """Describe the request's body as OpenAPI does; FastAPI cannot, since we read it ourselves."""
    schema = codec.Body.model_json_schema()
    parts = schema.pop("$defs")
    for name in ("inputs", "outputs"):
        items = schema["properties"][name]["items"]
        schema["properties"][name]["items"] = parts[items["$ref"].rpartition("/")[2]]
    content = {_JSON: {"schema": schema}, RAW: _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a request's body that is JSON, if there is one."""
    return {"requestBody": {"required": False, "content": {_JSON: {"schema": schema}}}}


def _index_request(body: bytes) -> IndexRequest:
    """Read what is asked of the index; no body asks for all of it."""
    try:
        return IndexRequest.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedRequest(f"the body: {first['msg']}") from error
        raise InvalidParameter(parameters.sentence(first["loc"], first["msg"])) from error


def target(path: str) -> tuple[str, str] | None:
    """Give the template of a path that asks to infer, and what the catalogue calls its model."""
    if not (found := _INFER.fullmatch(path)):
        return None
    version = found["version"] or ""
    return INFER_VERSION if version else INFER, named(found["name"], version)


def about(inferring: Inference, is_leaving: Callable[[], bool]) -> APIRouter:
    """Make the routes that tell what is served, and how it is."""
    routes = APIRouter(responses=problem_details.documented(422, template=MODELS))
    model_registry = inferring.model_registry
    server = Server(
        name="googlenet-service",
        version=metadata.version("googlenet-service"),
        extensions=[*codec.EXTENSIONS],
    )

    @routes.get("/v2/health/live", responses=_failing(Live))
    async def live() -> Response:
        """Tell whether this process goes on living, as /livez does."""
        is_live = model_registry.failure_reason is None
        return JSONResponse({"live": is_live}, 200 if is_live else 503)

    @routes.get("/v2/health/ready", responses=_failing(Ready))
    async def ready() -> Response:
        """Tell whether requests should be sent here now, as /readyz does."""
        is_ready = model_registry.is_ready and not is_leaving()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @routes.get("/v2")
    async def described() -> Server:
        """Tell what serves, and which extensions of the protocol it knows."""
        return server

    @routes.get(MODELS, responses=problem_details.documented(404, 422, 503, template=MODELS))
    async def model(name: Name) -> Model:
        """Tell what a model takes and answers."""
        return _model(name, inferring.ensemble(name, ""))

    @routes.get(VERSION, responses=problem_details.documented(404, 422, 503, template=VERSION))
    async def model_version(name: Name, version: Version) -> Model:
        """Tell what a version of a model takes and answers."""
        return _model(name, inferring.ensemble(name, version))

    @routes.get(f"{MODELS}/ready", responses=_failing(ModelReady) | _UNKNOWN)
    async def model_ready(name: Name) -> Response:
        """Tell whether requests should be sent to a model."""
        return _ready(name, is_ready=inferring.works(name, ""))

    @routes.get(f"{VERSION}/ready", responses=_failing(ModelReady) | _UNKNOWN)
    async def model_version_ready(name: Name, version: Version) -> Response:
        """Tell whether requests should be sent to a version of a model."""
        return _ready(name, is_ready=inferring.works(name, version))

    return routes


def router(
    inferring: Inference, budget: Budget, tracer_provider: TracerProvider | None
) -> APIRouter:
    """Make the routes that infer."""
    routes = APIRouter()
    settings, metrics = inferring.settings, inferring.metrics
    stages = Stages(tracer_provider)
    bounds = Bounds(
        settings.max_body_bytes, settings.max_images_per_request, settings.upload_timeout_seconds
    )
    small = replace(bounds, nbytes=_MOST_OF_INDEX)

    @routes.post(INFER, responses=_ANSWERED, openapi_extra=_body())
    async def infer(
        request: Request,
        name: Name,
        header_length: HeaderLength = None,
        priority: Priority = None,
    ) -> Response:
        """Name what is on images, by the Open Inference Protocol.

        The one input is `image` (encoded images; base64 where it is JSON, which has no bytes),
        `pixels` (RGB) or `tensor` (what the network takes: one view), a row for each image. The
        output is `probabilities`, or with the parameter `classification` so many labels. Other
        parameters of a request are `views` and `timeout`, in microseconds.
        """
        return await inferred(request, (name, ""), header_length, priority)

    @routes.post(INFER_VERSION, responses=_ANSWERED, openapi_extra=_body())
    async def infer_version(
        request: Request,
        name: Name,
        version: Version,
        header_length: HeaderLength = None,
        priority: Priority = None,
    ) -> Response:
        """Do the same with a version of a model."""
        return await inferred(request, (name, version), header_length, priority)

    @routes.post(INDEX, responses=_LISTED, openapi_extra=_json(IndexRequest.model_json_schema()))
    async def index(request: Request) -> list[IndexedModel]:
        """List the models that are served, as Triton does."""
        with budget.share() as share:
            asked = _index_request(await whole(request, small, share))
        return [IndexedModel(**asdict(one)) for one in inferring.index(only_ready=asked.ready)]

    async def inferred(
        request: Request,
        model: tuple[str, str],  # and its version
        header_length: str | None,
        priority: str | None,
    ) -> Response:
        with budget.share() as share:
            started = time.monotonic()
            body = await whole(request, bounds, share)
            reading = partial(codec.parse, body, header_length)
            wish = await inferring.understand(len(body), reading)
            del body, reading  # what is needed of it is there
            uploaded = time.monotonic() - started
            background = is_background(priority)
            metrics.stage("upload", uploaded, background=background)
            # A deadline is the caller's, whose clock has run since; ours is for our own work.
            left = None if wish.seconds is None else wish.seconds - uploaded
            found = await inferring.infer(
                *model,
                wish,
                seconds=left,
                background=background,
                gone=lambda: gone(request),
            )
        stages.trace(started, uploaded, found.answers)
        total = request_stats.add_up(found.answers)
        note(request.scope, total.notes(found.plan, uploaded))
        headers = total.headers(caches=settings.cache_bytes > 0)
        return _response(found.answered, headers, is_binary=wish.is_binary)

    return routes


def _model(name: str, ensemble: Ensemble) -> Model:
    return Model(
        name=name,
        versions=[ensemble.version],
        platform=codec.PLATFORM,
        inputs=[_described(each) for each in codec.INPUTS],
        outputs=[_described(codec.output(len(ensemble.labels)))],
    )


def _described(tensor: codec.Described) -> Described:
    return Described(name=tensor.name, datatype=tensor.datatype, shape=[*tensor.shape])


def _ready(name: str, *, is_ready: bool) -> Response:
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


def _response(answered: Answered, headers: dict[str, str], *, is_binary: bool) -> Response:
    described, raw = codec.body(answered, is_binary=is_binary)
    head = to_json(described)
    if not is_binary:
        return Response(head, headers=headers, media_type=_JSON)
    length = {HEADER_LENGTH: str(len(head))}
    return Response(head + raw, headers=headers | length, media_type=RAW)
