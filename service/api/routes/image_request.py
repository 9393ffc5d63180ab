"""What requests with images share: parameters, the body, timeout, disconnect."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service.api import archive_body, json_body, parameters
from service.api.fetch.images import Fetch, Quota, fetched
from service.api.form import ALIASES, FIELD, Upload
from service.api.json_body import Shape
from service.api.middleware.request_log import note
from service.api.tracing import Stages
from service.api.upload_budget import Budget
from service.api.uploads import RAW, BodyLimits, read
from service.errors import ServiceError
from service.imaging import image_decoder
from service.serving import request_stats
from service.serving.core import Core
from service.serving.predictor import Predictor
from service.serving.request_stats import Total
from service.serving.types import Answer
from service.settings import MODEL, Settings

_BINARY = {"type": "string", "format": "binary"}

PRIORITY = "u=7 (RFC 9218) marks a background request: others go first"


class ImageQuery(BaseModel):
    """The query of every request with images; form fields may come in its place."""

    model: Annotated[
        Annotated[str, Field(pattern=rf"^{MODEL}$")] | SkipJsonSchema[None],
        Field(description="which of the models that are served; default: the default model"),
    ] = None


class ImageHeaders(BaseModel):
    """The headers of every request with images."""

    timeout_ms: Annotated[
        Annotated[int, Field(ge=1)] | SkipJsonSchema[None],
        Field(
            alias="x-timeout-ms",
            description="its own deadline, from its head on; at most the server's",
        ),
    ] = None


def body(
    fields: type[ImageQuery], settings: Settings, max_files: int | None = None
) -> dict[str, Any]:
    """Describe the request's body for OpenAPI; the handler reads it, not FastAPI."""
    max_files = max_files or settings.max_images_per_request
    images = {
        "type": "array",
        "items": _BINARY,
        "minItems": 1,
        "maxItems": max_files,
        "description": f"other names of it: {', '.join(ALIASES)}",
    }
    known = fields.model_json_schema()["properties"]
    media_types = (*image_decoder.MEDIA_TYPES, RAW, *archive_body.KINDS)
    content = {
        "multipart/form-data": {"schema": _object(FIELD, images, known)},
        json_body.MEDIA_TYPE: {"schema": _json(max_files, known, urls=settings.fetch_images)},
        **{media_type: {"schema": _BINARY} for media_type in media_types},
    }
    return {"requestBody": {"required": True, "content": content}}


def _json(max_files: int, fields: dict[str, Any], *, urls: bool) -> dict[str, Any]:
    """Describe JSON with images in base64 or, if those are fetched, by URL."""
    base64, link = json_body.BASE64, json_body.LINK
    encoded = {
        "type": "array",
        "items": {"anyOf": [base64, link]} if urls else base64,
        "minItems": 1,
        "maxItems": max_files,
        "description": "images in base64, or data URLs" + (", or URLs" if urls else ""),
    }
    if not urls:
        return _object(json_body.IMAGES, encoded, fields)
    one = {**link, "description": "the URL of one image, instead of `images`"}
    either = _object(json_body.IMAGES, encoded, {json_body.URL: one, **fields})
    del either["required"]
    return {**either, "oneOf": [{"required": [json_body.IMAGES]}, {"required": [json_body.URL]}]}


def _object(name: str, images: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Describe a form, or JSON, that has images beside the fields of a query."""
    return {
        "type": "object",
        "required": [name],
        "properties": {name: images, **fields},
        "additionalProperties": False,
    }


Q = TypeVar("Q", bound=ImageQuery)


@dataclass(frozen=True, slots=True)
class Received(Generic[Q]):
    """A request whose body has been read."""

    model: Predictor
    stages: Stages
    uploads: list[Upload]
    query: Q  # with the form's fields
    started: float  # by time.monotonic()
    uploaded: float  # seconds that reading took
    seconds: float  # left after that

    @property
    def images(self) -> list[bytes | ServiceError]:
        """The images, or the error of each that could not be read."""
        return [upload.error or upload.data for upload in self.uploads]

    def record(
        self, request: Request, plan: str, answers: Sequence[Answer | ServiceError]
    ) -> Total:
        """Trace and log the answers; returns what they are in sum."""
        self.stages.trace(self.started, self.uploaded, answers)
        total = request_stats.add_up(answers)
        note(request.scope, total.notes(plan, self.uploaded))
        return total


@dataclass(frozen=True, slots=True)
class Receiver:
    """Reads the bodies of requests, which have at most `max_seconds` after that."""

    core: Core
    budget: Budget
    bounds: BodyLimits
    max_seconds: float
    fetch: Fetch
    stages: Stages
    shape: Shape = json_body.ordinary  # of JSON

    @asynccontextmanager
    async def receive(
        self, request: Request, query: Q, headers: ImageHeaders
    ) -> AsyncIterator[Received[Q]]:
        """Read a request, and fetch the images that it gives by URL.

        Fields of a form, or of JSON, take precedence over its query.

        The model and the memory of the images are in use until the context is left. Raises what
        `service.api.uploads.read` does, `InvalidParameter`, `UnknownModel` or `NotReady`, and
        `DeadlineExceeded` while it fetches.
        """
        with ExitStack() as stack:
            model = stack.enter_context(self.core.use(query.model))
            share = stack.enter_context(self.budget.share())
            started = time.monotonic()
            names = type(query).model_fields
            form = await read(request, self.bounds, share, names, self.shape)
            if form.fields:
                fields = parameters.parse(type(query), form.fields, strict=form.typed)
                query = query.model_copy(update=fields.model_dump(exclude_unset=True))
                model = stack.enter_context(self.core.use(query.model))
            received = time.monotonic() - started
            seconds = self._left(headers.timeout_ms, received)
            uploads = form.uploads
            if any(upload.url for upload in uploads):
                quota = Quota(self.bounds.nbytes, share)
                is_gone = partial(gone, request)
                uploads = await fetched(self.fetch, uploads, quota, seconds, is_gone)
            uploaded = time.monotonic() - started
            left = seconds - (uploaded - received)
            yield Received(model, self.stages, uploads, query, started, uploaded, left)

    def _left(self, timeout_ms: int | None, uploaded: float) -> float:
        """Return the seconds left after an upload of `uploaded` seconds.

        The client's timeout includes the upload; the server's starts after it.
        """
        if timeout_ms is None:
            return self.max_seconds
        return min(1000 * self.max_seconds, timeout_ms) / 1000 - uploaded


async def gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
