"""The door: what would be refused anyway is refused here, before any framework has worked.

Under overload most requests are refused, and what each of them costs is taken from the others.
"""

import re
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import problem_details
from service.api.middleware.request_log import is_background, name_route, path
from service.api.open_inference.routes import target
from service.api.routes import classify, explain
from service.errors import ServiceError
from service.imaging import crops
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry
from service.settings import AUTO, Settings

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")


class EarlyAdmission:
    """Lets a request in, unless not even one image of its views can be answered in its time."""

    def __init__(
        self, app: ASGIApp, model_registry: ModelRegistry, settings: Settings, metrics: Metrics
    ) -> None:
        self._app, self._catalogue, self._metrics = app, model_registry, metrics
        self._views = {classify.PATH: settings.views, explain.PATH: explain.VIEWS}
        self._most = str(int(settings.timeout_seconds * 1000))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            asked = path(scope)
            wanted = target(asked)
            try:
                if wanted:
                    self._check_infer(scope, wanted[1])
                elif default := self._views.get(asked):
                    self._check(scope, default, maps=asked == explain.PATH)
            except ServiceError as error:
                name_route(scope, wanted[0] if wanted else asked)
                refusal = problem_details.refusal(error, Request(scope), self._metrics)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, default: str, *, maps: bool) -> None:
        """Raise what the classifier refuses with; what is no views or no time, the route tells."""
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        plan, model = asked.get("views", [default])[-1], asked.get("model", [None])[-1]
        milliseconds = Headers(scope=scope).get("x-timeout-ms", self._most)
        if plan == AUTO:
            plan = crops.NAMES[0]  # if there is no time even for the fewest
        if plan in crops.NAMES and _MILLISECONDS.fullmatch(milliseconds):
            seconds = min(int(milliseconds), int(self._most)) / 1000
            classifier = self._catalogue.find(model).classifier
            classifier.check(plan=plan, seconds=seconds, maps=maps, background=is_background(scope))

    def _check_infer(self, scope: Scope, model: str) -> None:
        """Raise the same; which views are asked for, and by when, is in the body: so the least."""
        classifier = self._catalogue.find(model).classifier
        classifier.check(
            plan="single", seconds=int(self._most) / 1000, background=is_background(scope)
        )
