"""What requests with images share: parameters, the body's OpenAPI, timeout, disconnect."""

from typing import Annotated, Any

from fastapi import Header, Query, Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service.api.uploads import FIELD, RAW
from service.imaging import image_decoder
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


def left(request: Request, milliseconds: int, uploaded: float) -> float:
    """Give the seconds left after an upload of `uploaded` seconds.

    The client's timeout includes the upload; the server's starts after it.
    """
    return milliseconds / 1000 - (uploaded if _TIMEOUT in request.headers else 0.0)


async def gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
