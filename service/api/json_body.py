"""A body that is JSON: images in base64 or by URL, and parameters beside them."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api import base64_image, parameters
from service.errors import InvalidParameter, ServiceError, TooLarge

MEDIA_TYPE = "application/json"
IMAGES = "images"
URL = "url"
BASE64 = {"type": "string", "format": "byte"}  # for OpenAPI
LINK = {"type": "string", "format": "uri", "pattern": "^https?://"}  # the same
LARGE = 256 * 1024  # bytes of a body that is read in a thread, beside the event loop
_MAX_VALUES = 10_000  # images, parameters, and the commas in both


@dataclass(frozen=True, slots=True)
class Json:
    """The images of a body, in base64 or by URL, and its parameters, by name."""

    name: str  # of the field with the images
    images: Sequence[str]
    fields: Mapping[str, Any]
    url: str = ""  # of one image in their place


Shape = Callable[[bytes], Json]
"""Parses JSON of one shape; raises `InvalidParameter` or `MalformedRequest`."""


class _Body(BaseModel):
    """The JSON of `/classify`; all else in it are parameters."""

    model_config = ConfigDict(strict=True, extra="allow")

    images: Annotated[list[str], Field(min_length=1)] = []
    url: Annotated[str, Field(min_length=1)] = ""


def ordinary(body: bytes) -> Json:
    """Parse the JSON of `/classify` and `/explain`: the `Shape` that is no other server's."""
    parsed = parameters.parse_json(_Body, body)
    if bool(parsed.images) == bool(parsed.url):
        raise InvalidParameter(f"{IMAGES}: send either images or the {URL} of one")
    return Json(IMAGES, parsed.images, parsed.model_extra or {}, parsed.url)


Images = list[bytes | ServiceError | str]
"""Images, the error of each that is no base64, or the URL of each that is to be fetched."""


async def read(
    body: bytes, shape: Shape, known: Collection[str], max_images: int
) -> tuple[Images, Mapping[str, Any]]:
    """Give a body's images, and its parameters, which have to be `known`.

    Raises `InvalidParameter`, `MalformedRequest` or `TooLarge`.
    """
    work = partial(_read, body, shape, known, max_images)
    return await asyncio.to_thread(work) if len(body) > LARGE else work()


def _read(
    body: bytes, shape: Shape, known: Collection[str], max_images: int
) -> tuple[Images, Mapping[str, Any]]:
    parameters.check_values(body, _MAX_VALUES, "send fewer")
    json = shape(body)
    for name, value in json.fields.items():
        if name not in known:
            raise parameters.unknown("field", name, {json.name, *known})
        if value is None:
            raise InvalidParameter(f"{name} is null; leave it out instead")
    if len(json.images) > max_images:
        raise TooLarge(f"the request has over {max_images} images; send fewer")
    if json.url:
        return [json.url], json.fields
    images = [_decoded(image, f"{json.name}[{n}]") for n, image in enumerate(json.images)]
    return images, json.fields


def _decoded(image: str, name: str) -> bytes | ServiceError | str:
    if base64_image.is_url(image):
        return image
    try:
        return base64_image.decode(image, name)
    except ServiceError as error:
        return error
