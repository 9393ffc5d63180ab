"""An answer as JSON lines: one for each image of a request, as it is ready."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import problem_details
from service.errors import ClientDisconnected, Overloaded, ServiceError
from service.serving.disconnects import never
from service.serving.metrics.metrics import Metrics
from service.serving.predictor import AdmitRequest, Predictor, PredictRequest, PredictResponse
from service.settings import PlanName

MEDIA_TYPE = "application/x-ndjson"
_WAIT = 0.05  # seconds at least, before an image is tried again
_PLACE = {
    "index": {"type": "integer", "description": "place of the image in the request, from 0"},
    "filename": {"type": ["string", "null"]},
}
_PROBLEM = {"error": {"$ref": "#/components/schemas/Problem"}}
CONTENT = {
    MEDIA_TYPE: {
        "schema": {
            "description": "a line for each image as it is ready: the answer to one, or its error",
            "type": "object",
            "required": [*_PLACE],
            "properties": _PLACE,
            "anyOf": [
                {"$ref": "#/components/schemas/One"},
                {"required": [*_PROBLEM], "properties": _PROBLEM},
            ],
        }
    }
}  # of a response, for its OpenAPI


def is_accepted(request: Request) -> bool:
    """Tell whether the client asks for lines."""
    return MEDIA_TYPE in request.headers.get("accept", "")


class LinesResponse(Response):
    """Sends lines as they come, the first of which is there."""

    media_type = MEDIA_TYPE

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes], metrics: Metrics) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # a proxy is to pass lines on at once
        del self.headers["content-length"]
        self._first, self._rest, self._metrics = first, rest, metrics

    @classmethod
    async def of(cls, lines: AsyncGenerator[bytes], metrics: Metrics) -> "LinesResponse":
        """Wait for the first line; raises what the whole request is refused with before that."""
        return cls(await anext(lines), lines, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until the last one, or until the client has disconnected."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with contextlib.aclosing(self._rest):
            await send(start)
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for line in self._rest:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            except ClientDisconnected as error:  # only counted: no client reads its response
                problem_details.refusal(error, Request(scope, receive), self._metrics)
                return
            await send({"type": "http.response.body", "body": b""})


Ready = tuple[int, PredictResponse]
"""An image's place in its request, and its answer or error."""


async def predict_each(model: Predictor, request: PredictRequest) -> AsyncGenerator[Ready]:
    """Admit a request as a whole, predict its images one by one, and give each when it is ready.

    Raises what the request is refused with, and `ClientDisconnected`. Closing it cancels what is
    not ready.
    """
    count, seconds = len(request.images), request.seconds
    asked = AdmitRequest(request.views, seconds, count, background=request.background)
    plan = await model.admit(asked)
    single = replace(request, views=plan, gone=never)
    deadline = time.monotonic() + request.seconds
    finished: asyncio.Queue[asyncio.Task[Ready | None]] = asyncio.Queue()
    watching = asyncio.create_task(_watch(request))
    works = [
        asyncio.create_task(_predict(model, index, plan, replace(single, images=[image]), deadline))
        for index, image in enumerate(request.images)
    ]
    for task in (watching, *works):
        task.add_done_callback(finished.put_nowait)
    try:
        for _ in works:
            if not (ready := (await finished.get()).result()):
                raise ClientDisconnected("the client disconnected before its last line was sent")
            yield ready
    finally:
        for task in (watching, *works):
            task.cancel()
        await asyncio.gather(watching, *works, return_exceptions=True)


async def _watch(request: PredictRequest) -> None:
    await request.gone()


async def _predict(
    model: Predictor, index: int, plan: PlanName, request: PredictRequest, deadline: float
) -> Ready | None:
    """Predict one image; while others have taken its place, try again as long as there is time."""
    while True:
        try:
            seconds = deadline - time.monotonic()
            return index, await model.predict(replace(request, seconds=seconds))
        except ServiceError as error:
            wait = max(_WAIT, error.retry_after) if isinstance(error, Overloaded) else math.inf
            if time.monotonic() + wait >= deadline:
                return index, PredictResponse(model.ensemble, plan, [error])
            await asyncio.sleep(wait)
