"""What requests with images share: parameters, the body, timeout, disconnect."""

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Header, Query, Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service.api import parameters
from service.api.uploads import FIELD, RAW, Bounds, Budget, Upload, read
from service.imaging import image_decoder
from service.serving.classifier import Classifier
from service.serving.registry import ModelRegistry
from service.settings import MODEL

_TIMEOUT = "x-timeout-ms"
_BINARY = {"type": "string", "format": "binary"}

Model = Annotated[
    str | None, Query(pattern=rf"^{MODEL}$", description="which of the models that are served")
]
ModelField = Annotated[str | None, Field(pattern=rf"^{MODEL}$", description="as in the query")]
Milliseconds = Annotated[
    int, Header(ge=1, description="its own deadline, from its head on; at most the server's")
]
Priority = Annotated[
    str | SkipJsonSchema[None],  # a header that is there is no null
    Header(
        description="u=7 (RFC 9218) marks a background request: others go first",
        examples=["u=7"],
    ),
]


def body(max_files: int, fields: type[BaseModel]) -> dict[str, Any]:
    """Describe the request's body for OpenAPI; the handler reads it, not FastAPI."""
    images = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": max_files}
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: images, **_properties(fields)},
        "additionalProperties": False,
    }
    media_types = (*image_decoder.MEDIA_TYPES, RAW)
    content = {
        "multipart/form-data": {"schema": form},
        **{media_type: {"schema": _BINARY} for media_type in media_types},
    }
    return {"requestBody": {"required": True, "content": content}}


def _properties(fields: type[BaseModel]) -> dict[str, Any]:
    """Describe optional form fields, which are never null."""
    described = fields.model_json_schema()["properties"]
    return {
        name: next(schema for schema in field["anyOf"] if schema != {"type": "null"})
        for name, field in described.items()
    }


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of every request with images, of its query, headers and form."""

    model: str | None
    timeout_ms: int


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True, slots=True)
class Received(Generic[P]):
    """A request whose body has been read."""

    classifier: Classifier
    uploads: list[Upload]
    parameters: P
    started: float  # by time.monotonic()
    uploaded: float  # seconds that reading took
    seconds: float  # left after that


@dataclass(frozen=True, slots=True)
class Receiver:
    """Reads the bodies of a route's requests, whose form fields are those of `fields`."""

    model_registry: ModelRegistry
    budget: Budget
    bounds: Bounds
    fields: type[BaseModel]

    @asynccontextmanager
    async def receive(self, request: Request, chosen: P) -> AsyncIterator[Received[P]]:
        """Read a request; form fields take precedence over the parameters `chosen` before.

        The model and the memory of the images are in use until the context is left. Raises what
        `service.api.uploads.read` does, `InvalidParameter`, `UnknownModel` or `NotReady`.
        """
        with ExitStack() as stack:
            classifier = stack.enter_context(self.model_registry.use(chosen.model))
            share = stack.enter_context(self.budget.share())
            started = time.monotonic()
            form = await read(request, self.bounds, share, self.fields.model_fields)
            fields = parameters.parse(self.fields, form.fields).model_dump(exclude_none=True)
            if "model" in fields:
                classifier = stack.enter_context(self.model_registry.use(fields["model"]))
            chosen = replace(chosen, **fields)
            uploaded = time.monotonic() - started
            seconds = _left(request, chosen.timeout_ms, uploaded)
            yield Received(classifier, form.uploads, chosen, started, uploaded, seconds)


def _left(request: Request, milliseconds: int, uploaded: float) -> float:
    """Return the seconds left after an upload of `uploaded` seconds.

    The client's timeout includes the upload; the server's starts after it.
    """
    return milliseconds / 1000 - (uploaded if _TIMEOUT in request.headers else 0.0)


async def gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
