"""The Open Inference Protocol's inference and repository index over HTTP."""

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json
from starlette.responses import Response

from service.api import parameters, problem_details
from service.api.middleware.request_log import note
from service.api.middleware.security_headers import is_background
from service.api.open_inference import infer_response, json_request
from service.api.open_inference.handler import Inference
from service.api.open_inference.infer_response import InferResponse
from service.api.open_inference.json_request import HEADER_LENGTH
from service.api.open_inference.paths import INDEX, INFER, INFER_VERSION, MODELS, Name, Version
from service.api.open_inference.tensors import OUTPUT
from service.api.routes.image_request import PRIORITY, gone
from service.api.tracing import Stages
from service.api.upload_budget import Budget
from service.api.uploads import RAW, BodyLimits, whole
from service.serving import request_stats

_JSON = "application/json"
_MAX_INDEX_BYTES = 4096  # of a request for the index

HeaderLength = Annotated[
    Annotated[str, Field(pattern=r"^[0-9]{1,12}$")]
    | SkipJsonSchema[None],  # a header that is there is no null
    Header(
        alias=HEADER_LENGTH,
        description="bytes of the JSON, where binary tensors follow it",
    ),
]
Priority = Annotated[str | SkipJsonSchema[None], Header(description=PRIORITY, examples=["u=7"])]


class IndexRequest(json_request.Strict):
    """Which models to list; there is one repository, whose name is ignored."""

    ready: Annotated[bool, Field(description="only those that are ready")] = False
    repository_name: str = ""


class IndexedModel(BaseModel):
    """A model that is served, and whether it is ready."""

    name: str
    version: str
    state: Annotated[str, Field(examples=["READY"], description="READY or UNAVAILABLE")]
    reason: Annotated[str, Field(description="why it is not ready")]


class Output(BaseModel):
    """One tensor of an answer; its values are `data`, or binary after the JSON."""

    name: Annotated[str, Field(examples=[OUTPUT])]
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
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "content": {RAW: _BINARY}},
    400: {"model": problem_details.Failure},
    **problem_details.documented(404, 408, 413, 415, 422, 500, 501, 503, 504, template=MODELS),
}
_LISTED: dict[int | str, dict[str, Any]] = {
    400: {"model": problem_details.Failure},
    **problem_details.documented(408, 413, 415, 422, 503, template=INDEX),
}


def router(inference: Inference, budget: Budget, stages: Stages) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    handlers = _Handlers(inference, budget, stages)
    body = _infer_body()
    routes.post(INFER, responses=_ANSWERED, openapi_extra=body)(handlers.infer)
    routes.post(INFER_VERSION, responses=_ANSWERED, openapi_extra=body)(handlers.infer_version)
    routes.post(INDEX, responses=_LISTED, openapi_extra=_index_body())(handlers.index)
    return routes


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    inference: Inference
    budget: Budget
    stages: Stages

    async def infer(
        self,
        request: Request,
        name: Name,
        header_length: HeaderLength = None,
        priority: Priority = None,
    ) -> Response:
        """Name what is on images, by the Open Inference Protocol.

        The one input is `image` (encoded images; base64 where it is JSON, which has no bytes),
        `pixels` (RGB) or `tensor` (what the network takes: one view), a row for each image. The
        outputs are `probabilities`, or with the parameter `classification` so many labels, and, if
        they are named, the `features` that `/embed` gives. Other parameters of a request are
        `views` and `timeout`, in microseconds.
        """
        return await self._infer(request, (name, ""), header_length, priority)

    async def infer_version(
        self,
        request: Request,
        name: Name,
        version: Version,
        header_length: HeaderLength = None,
        priority: Priority = None,
    ) -> Response:
        """Do the same with a version of a model."""
        return await self._infer(request, (name, version), header_length, priority)

    async def index(self, request: Request) -> list[IndexedModel]:
        """List the models that are served, as Triton does."""
        bounds = replace(BodyLimits.of(self.inference.settings), nbytes=_MAX_INDEX_BYTES)
        with self.budget.share() as share:
            body = await whole(request, bounds, share)
            only_ready = parameters.parse_json(IndexRequest, body or b"{}").ready
        models = self.inference.index(only_ready=only_ready)
        return [IndexedModel(**asdict(model)) for model in models]

    async def _infer(
        self,
        request: Request,
        model: tuple[str, str],  # and its version
        header_length: str | None,
        priority: str | None,
    ) -> Response:
        with self.budget.share() as share:
            started = time.monotonic()
            body = await whole(request, BodyLimits.of(self.inference.settings), share)
            read = partial(json_request.parse, body, header_length)
            valid = await self.inference.validate(len(body), read)
            del body, read  # free the memory
            uploaded = time.monotonic() - started
            background = is_background(priority)
            self.inference.metrics.stage("upload", uploaded, background=background)
            # The client's timeout includes the upload; the server's starts after it.
            left = None if valid.seconds is None else valid.seconds - uploaded
            inferred = await self.inference.infer(
                *model,
                valid,
                seconds=left,
                background=background,
                gone=lambda: gone(request),
            )
        self.stages.trace(started, uploaded, inferred.answers)
        total = request_stats.add_up(inferred.answers)
        note(request.scope, total.notes(inferred.plan, uploaded))
        headers = total.headers(caches=self.inference.settings.cache_bytes > 0)
        return _response(inferred.response, headers)


def _infer_body() -> dict[str, Any]:
    """Describe the body of an infer request for OpenAPI; the handler reads it, not FastAPI."""
    schema = json_request.Body.model_json_schema()
    definitions = schema.pop("$defs")
    for name in ("inputs", "outputs"):
        items = schema["properties"][name]["items"]
        schema["properties"][name]["items"] = definitions[items["$ref"].rpartition("/")[2]]
    content = {_JSON: {"schema": schema}, RAW: _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _index_body() -> dict[str, Any]:
    """Describe the optional body of an index request for OpenAPI."""
    content = {_JSON: {"schema": IndexRequest.model_json_schema()}}
    return {"requestBody": {"required": False, "content": content}}


def _response(response: InferResponse, headers: dict[str, str]) -> Response:
    described, raw = infer_response.body(response)
    head = to_json(described)
    if not raw:
        return Response(head, headers=headers, media_type=_JSON)
    length = {HEADER_LENGTH: str(len(head))}
    return Response(head + raw, headers=headers | length, media_type=RAW)
