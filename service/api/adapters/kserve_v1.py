"""KServe's V1 protocol: /v1/models, which is TensorFlow Serving's, too."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from service.api import json_body, parameters
from service.api.adapters.adapter import ERRORS, Adapter, RankingQuery
from service.api.json_body import BASE64, Json
from service.api.open_inference.paths import Name
from service.api.problem_details import documented
from service.api.routes.classify import ClassifyHeaders

_MODELS = "/v1/models"
_MODEL = _MODELS + "/{name}"
_PREDICT = _MODEL + ":predict"
_KEYS = ("b64", "image", "image_bytes", "data")  # under which examples of either server have it


class Label(BaseModel):
    """A label and how probable it is."""

    label: Annotated[str, Field(examples=["beagle"])]
    index: Annotated[int, Field(description="place among the classes", examples=[162])]
    probability: Annotated[float, Field(ge=0, le=1, examples=[0.81])]


class Predicted(BaseModel):
    """The most probable labels of each instance, in their order."""

    predictions: list[list[Label]]


class Ready(BaseModel):
    """Whether requests should be sent to a model."""

    name: str
    ready: bool


class Served(BaseModel):
    """The models that are served."""

    models: list[str]


class _Body(BaseModel):
    """JSON of the protocol; unknown fields are for other servers, and ignored."""

    model_config = ConfigDict(strict=True)

    instances: Annotated[list[Any], Field(min_length=1)]


class _ModelRoute(APIRoute):
    """A model's own route, not that of a verb: a name has no colon."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Tell whether this is the route of a request."""
        if ":" in scope["path"].rpartition("/")[2]:
            return Match.NONE, {}
        return super().matches(scope)


def router(adapter: Adapter) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["KServe V1"])
    handlers = _Handlers(adapter)
    predicted: dict[int | str, dict[str, Any]] = {200: {"model": Predicted}, **ERRORS}
    ready: dict[int | str, dict[str, Any]] = {
        200: {"model": Ready},
        503: {"model": Ready, "description": "Service Unavailable"},
        **documented(404, 422),
    }
    body = _body(adapter.settings.max_images_per_request)
    routes.post(_PREDICT, responses=predicted, openapi_extra=body)(handlers.predict)
    routes.get(_MODELS)(handlers.models)
    routes.add_api_route(_MODEL, handlers.ready, responses=ready, route_class_override=_ModelRoute)
    return routes


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    adapter: Adapter

    async def predict(
        self, request: Request, name: Name, headers: Annotated[ClassifyHeaders, Header()]
    ) -> Response:
        """Name what is on each image, by KServe's V1 protocol."""
        most = self.adapter.settings.max_images_per_request
        ranked = await self.adapter.predict(
            request, RankingQuery(model=name), headers, shape=_shape, max_images=most
        )
        predictions = [
            [
                {"label": top.label, "index": top.index, "probability": top.probability}
                for top in ranking
            ]
            for ranking in ranked.rankings
        ]
        return ranked.response({"predictions": predictions})

    async def models(self) -> Served:
        """List the models that are served."""
        return Served(models=[*self.adapter.core.status.served])

    async def ready(self, name: Name) -> Response:
        """Tell whether requests should be sent to a model."""
        is_ready = self.adapter.core.status.find(name).failure_reason is None
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


def _body(max_images: int) -> dict[str, Any]:
    """Describe the body of a request for OpenAPI; the handler reads it, not FastAPI."""
    b64 = {"type": "object", "required": ["b64"], "properties": {"b64": BASE64}}
    image = {"type": "object", "required": ["image"], "properties": {"image": b64}}
    instances = {
        "type": "array",
        "items": {"anyOf": [BASE64, b64, image]},
        "minItems": 1,
        "maxItems": max_images,
        "description": "images in base64",
    }
    schema = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": instances},
    }
    return {
        "requestBody": {"required": True, "content": {json_body.MEDIA_TYPE: {"schema": schema}}}
    }


def _shape(body: bytes) -> Json:
    parsed = parameters.parse_json(_Body, body)
    return Json("instances", [_image(instance) for instance in parsed.instances], {})


def _image(instance: Any) -> Any:
    """Find an instance's base64, whatever it is called."""
    while isinstance(instance, dict):
        instance = next((instance[key] for key in _KEYS if key in instance), None)
    return instance
