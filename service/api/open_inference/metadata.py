"""The Open Inference Protocol's health and metadata over HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from service.api import problem_details
from service.api.open_inference import tensors
from service.api.open_inference.handler import EXTENSIONS, PLATFORM, Inference
from service.api.open_inference.paths import MODELS, VERSION, Name, Version
from service.models.ensemble import Ensemble


class Live(BaseModel):
    """Whether the server goes on living."""

    live: bool


class Ready(BaseModel):
    """Whether requests should be sent."""

    ready: bool


class ModelReady(Ready):
    """Whether requests should be sent to a model."""

    name: str


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
    platform: Annotated[str, Field(examples=[PLATFORM])]
    inputs: list[Described]
    outputs: list[Described]


def router(inference: Inference, is_leaving: Callable[[], bool]) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(responses=problem_details.documented(422, template=MODELS))
    handlers = _Handlers(inference, is_leaving)
    unknown = problem_details.documented(404, 422, template=MODELS)
    missing = problem_details.documented(404, 422, 503, template=MODELS)
    ready = _failing(ModelReady) | unknown
    routes.get("/v2/health/live", responses=_failing(Live))(handlers.live)
    routes.get("/v2/health/ready", responses=_failing(Ready))(handlers.ready)
    routes.get("/v2")(handlers.described)
    routes.get(MODELS, responses=missing)(handlers.model)
    routes.get(VERSION, responses=missing)(handlers.model_version)
    routes.get(f"{MODELS}/ready", responses=ready)(handlers.model_ready)
    routes.get(f"{VERSION}/ready", responses=ready)(handlers.model_version_ready)
    return routes


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    inference: Inference
    is_leaving: Callable[[], bool]

    async def live(self) -> Response:
        """Tell whether this process goes on living, as /livez does."""
        is_live = self.inference.status.failure_reason is None
        return JSONResponse({"live": is_live}, 200 if is_live else 503)

    async def ready(self) -> Response:
        """Tell whether requests should be sent here now, as /readyz does."""
        is_ready = self.inference.status.is_ready and not self.is_leaving()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def described(self) -> Server:
        """Tell what serves, and which extensions of the protocol it knows."""
        return Server(
            name="googlenet-service",
            version=metadata.version("googlenet-service"),
            extensions=[*EXTENSIONS],
        )

    async def model(self, name: Name) -> Model:
        """Tell what a model takes and answers."""
        return _model(name, self.inference.ensemble(name, ""))

    async def model_version(self, name: Name, version: Version) -> Model:
        """Tell what a version of a model takes and answers."""
        return _model(name, self.inference.ensemble(name, version))

    async def model_ready(self, name: Name) -> Response:
        """Tell whether requests should be sent to a model."""
        return _ready(name, is_ready=self.inference.works(name, ""))

    async def model_version_ready(self, name: Name, version: Version) -> Response:
        """Tell whether requests should be sent to a version of a model."""
        return _ready(name, is_ready=self.inference.works(name, version))


def _failing(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, 503: {"model": model, "description": "Service Unavailable"}}


def _model(name: str, ensemble: Ensemble) -> Model:
    return Model(
        name=name,
        versions=[ensemble.version],
        platform=PLATFORM,
        inputs=[_described(spec) for spec in tensors.INPUTS],
        outputs=[_described(spec) for spec in tensors.outputs(ensemble)],
    )


def _described(spec: tensors.TensorSpec) -> Described:
    return Described(name=spec.name, datatype=spec.datatype, shape=[*spec.shape])


def _ready(name: str, *, is_ready: bool) -> Response:
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)
