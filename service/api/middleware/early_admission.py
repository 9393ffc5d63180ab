"""Early admission: refuse overload before routing, parsing and reading the body.

Under overload most requests are refused, so a refusal has to be cheap.
"""

import re
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import problem_details
from service.api.middleware.request_log import is_background, name_route, path
from service.api.open_inference.paths import target
from service.api.routes import classify, embed, explain
from service.errors import ServiceError
from service.imaging import crops
from service.serving.core import Core
from service.serving.predictor import AdmitRequest
from service.settings import AUTO, Settings

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")


class EarlyAdmission:
    """Refuses a request if not even one image of its views can be classified in its time."""

    def __init__(self, app: ASGIApp, core: Core, settings: Settings) -> None:
        self._app, self._core = app, core
        self._views = {
            classify.PATH: settings.views,
            explain.PATH: explain.VIEWS,
            embed.PATH: embed.VIEWS,
        }
        self._max_ms = str(int(settings.timeout_seconds * 1000))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            template = path(scope)
            try:
                if infer := target(template):
                    template, model = infer
                    await self._check_infer(scope, model)
                elif default := self._views.get(template):
                    await self._check(scope, default, maps=template == explain.PATH)
            except ServiceError as error:
                name_route(scope, template)
                refusal = problem_details.refusal(error, Request(scope), self._core.metrics)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope, default: str, *, maps: bool) -> None:
        """Raise the core's refusal; the route refuses invalid views and timeouts."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        plan, model = query.get("views", [default])[-1], query.get("model", [None])[-1]
        milliseconds = Headers(scope=scope).get("x-timeout-ms", self._max_ms)
        if plan == AUTO:
            plan = crops.NAMES[0]  # if there is no time even for the fewest
        if plan in crops.NAMES and _MILLISECONDS.fullmatch(milliseconds):
            seconds = min(int(milliseconds), int(self._max_ms)) / 1000
            asked = AdmitRequest(plan, seconds, maps=maps, background=is_background(scope))
            await self._core.admit(model, asked)

    async def _check_infer(self, scope: Scope, model: str) -> None:
        """Raise the same for the fewest views: those and the timeout are in the unread body."""
        seconds = int(self._max_ms) / 1000
        asked = AdmitRequest("single", seconds, background=is_background(scope))
        await self._core.admit(model, asked)
