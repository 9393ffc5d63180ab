"""Hugging Face's image-classification task: POST /models/NAME."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.api import json_body, parameters
from service.api.adapters.adapter import BINARY, ERRORS, Adapter, RankingQuery
from service.api.json_body import BASE64, Json
from service.api.open_inference.paths import Name
from service.api.routes.classify import ClassifyHeaders
from service.api.uploads import RAW

PATH = "/models/{name}"


class Score(BaseModel):
    """A label and its score."""

    label: Annotated[str, Field(examples=["beagle"])]
    score: Annotated[float, Field(ge=0, le=1, examples=[0.81])]


class _Parameters(BaseModel):
    """Parameters of the task; null is the default."""

    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[int | None, Field(ge=1, le=1000, description="how many labels")] = None
    function_to_apply: Annotated[
        Literal["softmax"] | None, Field(description="what makes scores; no other is known")
    ] = None


class _Body(BaseModel):
    """JSON of the task."""

    model_config = ConfigDict(strict=True)

    inputs: Annotated[str, Field(json_schema_extra=BASE64)]
    parameters: _Parameters = _Parameters()


class _Query(RankingQuery):
    """Parameters of the task."""

    function_to_apply: Literal["softmax"] = "softmax"


def router(adapter: Adapter) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["Hugging Face"])
    responses: dict[int | str, dict[str, Any]] = {200: {"model": list[Score]}, **ERRORS}
    schema = _Body.model_json_schema()
    schema["properties"]["parameters"] = schema.pop("$defs")["_Parameters"]
    content = {json_body.MEDIA_TYPE: {"schema": schema}, RAW: BINARY, "image/*": BINARY}
    body = {"requestBody": {"required": True, "content": content}}
    handler = _Handler(adapter)
    routes.post(PATH, responses=responses, openapi_extra=body)(handler.image_classification)
    return routes


@dataclass(frozen=True, slots=True)
class _Handler:
    """The handler of the route; its docstring is OpenAPI's description."""

    adapter: Adapter

    async def image_classification(
        self, request: Request, name: Name, headers: Annotated[ClassifyHeaders, Header()]
    ) -> Response:
        """Name what is on an image: the task image-classification of Hugging Face's clients."""
        query = _Query(model=name)
        ranked = await self.adapter.predict(request, query, headers, shape=_shape)
        (ranking,) = ranked.rankings
        scores = [{"label": top.label, "score": top.probability} for top in ranking]
        return ranked.response(scores)


def _shape(body: bytes) -> Json:
    parsed = parameters.parse_json(_Body, body)
    return Json("inputs", [parsed.inputs], parsed.parameters.model_dump(exclude_none=True))
