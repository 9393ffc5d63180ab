"""TorchServe's inference API with the answer of its image_classifier: /predictions and /ping."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, RootModel
from starlette.responses import JSONResponse, Response

from service.api.adapters.adapter import BINARY, ERRORS, Adapter, RankingQuery
from service.api.open_inference.handler import named
from service.api.open_inference.paths import Name, Version
from service.api.routes.classify import ClassifyHeaders
from service.api.uploads import RAW

PING = "/ping"
_PREDICTIONS = "/predictions/{name}"
_VERSION = _PREDICTIONS + "/{version}"


class Probabilities(RootModel[dict[str, float]]):
    """The most probable labels, the first one first, and how probable they are."""


class Health(BaseModel):
    """Whether requests should be sent."""

    status: str


def router(adapter: Adapter) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["TorchServe"])
    handlers = _Handlers(adapter)
    responses: dict[int | str, dict[str, Any]] = {200: {"model": Probabilities}, **ERRORS}
    body = {"requestBody": {"required": True, "content": {RAW: BINARY, "image/*": BINARY}}}
    for add in (routes.post, routes.put):
        add(_PREDICTIONS, responses=responses, openapi_extra=body)(handlers.predictions)
        add(_VERSION, responses=responses, openapi_extra=body)(handlers.predictions_of_version)
    health: dict[int | str, dict[str, Any]] = {
        200: {"model": Health},
        503: {"model": Health, "description": "Service Unavailable"},
    }
    routes.get(PING, responses=health)(handlers.ping)
    return routes


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    adapter: Adapter

    async def predictions(
        self, request: Request, name: Name, headers: Annotated[ClassifyHeaders, Header()]
    ) -> Response:
        """Name what is on an image, as TorchServe's image_classifier does."""
        return await self._predictions(request, name, headers)

    async def predictions_of_version(
        self,
        request: Request,
        name: Name,
        version: Version,
        headers: Annotated[ClassifyHeaders, Header()],
    ) -> Response:
        """Do the same with a version of a model."""
        return await self._predictions(request, named(name, version), headers)

    async def ping(self) -> Response:
        """Tell whether requests should be sent here now, as /readyz does."""
        is_ready = self.adapter.is_ready
        status = "Healthy" if is_ready else "Unhealthy"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    async def _predictions(
        self, request: Request, model: str, headers: ClassifyHeaders
    ) -> Response:
        query = RankingQuery.model_construct(model=model)  # a@1 of version 2 is unknown: 404
        ranked = await self.adapter.predict(request, query, headers)
        (ranking,) = ranked.rankings
        labels: dict[str, float] = {}
        for top in ranking:  # of two classes of one name, the more probable
            labels.setdefault(top.label, top.probability)
        return ranked.response(labels)
