"""GET /models, and PUT and DELETE /models/{name} for API keys that may manage models."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.api import problem_details
from service.api.middleware.auth import is_manager
from service.errors import Forbidden
from service.imaging import crops
from service.models.ensemble import Ensemble
from service.serving.core import Core, LoadRequest
from service.settings import AUTO, MODEL, PlanName, Settings

PATH = "/models/{name}"

Name = Annotated[
    str, Path(pattern=rf"^{MODEL}$", description="a model in the store, or several to be averaged")
]

_FORBIDDEN = "this needs an API key whose entry in the file of keys says `manages = true`"


class Member(BaseModel):
    """One of the networks whose probabilities a model averages; most have one."""

    name: str
    version: str
    architecture: str
    sha256: Annotated[str, Field(description="of the weights file in the store")]


class Served(BaseModel):
    """A model that is served."""

    name: Annotated[str, Field(description="what `model` has to be to ask it")]
    version: str
    notice: Annotated[str | None, Field(description="what has to be known of it")]
    device: str
    precision: str
    classes: int
    views: Annotated[list[str], Field(description="what `views` may be")]
    default_views: PlanName
    explains: Annotated[
        bool,
        Field(description="has it class activation maps, for `/explain`, and features, `/embed`"),
    ]
    label_sets: Annotated[list[str], Field(description="the views that `coverage` is for")]
    members: list[Member]


class Candidate(BaseModel):
    """A model that is asked beside the default, its answers only compared in the metrics."""

    model: str
    share: Annotated[float, Field(description="of the default's requests")]


class Models(BaseModel):
    """All that is served, side by side."""

    default: Annotated[str, Field(description="the model that is asked when none is named")]
    shadow: Candidate | None
    models: list[Served]


Default = Annotated[bool, Query(description="ask it from now on when no model is named")]
Share = Annotated[
    float | None,
    Query(
        alias="shadow",
        ge=0,
        le=1,
        description="the share of the default's requests that it is asked for, too, only "
        "to compare their answers; 0 ends that",
    ),
]


def router(core: Core, settings: Settings) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    handlers = _Handlers(core, settings)
    changes = problem_details.documented(403, 404, 409, 422)
    loads = problem_details.documented(403, 404, 409, 422, 507)
    routes.get("/models", responses=problem_details.documented(503))(handlers.models)
    routes.put(PATH, responses=loads)(handlers.load)
    routes.delete(PATH, responses=changes, status_code=204)(handlers.unload)
    return routes


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handler of each route; their docstrings are OpenAPI's descriptions."""

    core: Core
    settings: Settings

    async def models(self) -> Models:
        """Tell what is served."""
        status = self.core.status
        status.find()  # raises NotReady until a model is loaded
        return Models(
            default=status.default,
            shadow=Candidate(model=status.shadow[0], share=status.shadow[1])
            if status.shadow
            else None,
            models=[
                _served(name, model.ensemble, self.settings)
                for name, model in status.served.items()
            ],
        )

    async def load(
        self, request: Request, name: Name, *, default: Default = False, share: Share = None
    ) -> Served:
        """Serve a model as it is in the store now; answers when it does.

        The one that is served by this name, if any, goes on until then, and ends what it has
        begun. Nothing happens if its files are the same.
        """
        _check(request)
        await self.core.load(LoadRequest(name, default, share))
        return _served(name, self.core.status.find(name).ensemble, self.settings)

    async def unload(self, request: Request, name: Name) -> Response:
        """Serve a model no more; what it has accepted is done."""
        _check(request)
        await self.core.unload(name)
        return Response(status_code=204)


def _check(request: Request) -> None:
    """Raise `Forbidden` unless the request's API key may manage models."""
    if not is_manager(request.scope):
        raise Forbidden(_FORBIDDEN)


def _served(name: str, ensemble: Ensemble, settings: Settings) -> Served:
    return Served(
        name=name,
        version=ensemble.version,
        notice=ensemble.notice,
        device=ensemble.device,
        precision=ensemble.precision,
        classes=len(ensemble.labels),
        views=[*crops.NAMES, AUTO],
        default_views=settings.views,
        explains=ensemble.explains,
        label_sets=[*ensemble.label_sets.thresholds] if ensemble.label_sets else [],
        members=[
            Member(
                name=member.name,
                version=member.version,
                architecture=member.architecture,
                sha256=member.sha256,
            )
            for member in ensemble.members
        ],
    )
