"""Read a request's body to images in memory, with limits that apply while it streams."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.api import archive_body, json_body, multipart
from service.api.form import Form, PartLimits, Upload
from service.api.json_body import Shape
from service.api.upload_budget import Share
from service.errors import (
    BodyTimeout,
    ClientDisconnected,
    CompressedBody,
    MalformedRequest,
    ServiceError,
    TooLarge,
    UnsupportedType,
)
from service.imaging.archives import Kind
from service.settings import Settings

RAW = "application/octet-stream"  # accepted as image/* is, for an image that is the body


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of one request; see `service.settings` for each."""

    nbytes: int
    files: int
    seconds: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Give the limits of these settings."""
        return cls(
            settings.max_body_bytes,
            settings.max_images_per_request,
            settings.upload_timeout_seconds,
        )


async def read(
    request: Request,
    bounds: BodyLimits,
    share: Share,
    fields: Collection[str] = (),
    shape: Shape = json_body.ordinary,
) -> Form:
    """Read the `file` parts of a multipart body, the images of an archive or JSON, or a raw image.

    Parts with one of the `ALIASES` are `file` parts, too. `fields` are the names of the form fields
    that may come with them; JSON has one `shape`. An empty file input of a browser's form is
    ignored. Raises `MalformedRequest`, `MissingFile`, `TooLarge`, `InvalidParameter`,
    `UnsupportedType`, `BodyTimeout`, `Overloaded` or `ClientDisconnected`, and `UnreadableImage`
    for a broken archive.
    """
    _check_coding(request)
    kind, options = parse_options_header(request.headers.get("content-type"))
    async with _arriving(bounds.seconds):
        chunks = _bounded(request, bounds.nbytes, share)
        if kind == b"multipart/form-data":
            limits = PartLimits(bounds.files, fields)
            parts = await multipart.parts(chunks, options.get(b"boundary"), limits.check)
            return Form.of(parts)
        if kind.startswith(b"image/") or kind == RAW.encode():
            return Form([await _raw(chunks)], {})
        if archive := archive_body.KINDS.get(kind.decode("latin-1")):
            return Form(await _unpacked((await _raw(chunks)).data, archive, bounds, share), {})
        if kind == json_body.MEDIA_TYPE.encode():
            body = b"".join([chunk async for chunk in chunks])
            images, values = await json_body.read(body, shape, fields, bounds.files)
            return Form([_upload(None, image, share) for image in images], values, typed=True)
    raise UnsupportedType(
        "send multipart/form-data with a `file` part, the image itself as image/*, several as "
        "application/zip or application/x-tar, or base64 in application/json"
    )


def has_fields(request: Request) -> bool:
    """Tell whether a body may have parameters, which take precedence over the query's."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    return kind in {b"multipart/form-data", json_body.MEDIA_TYPE.encode()}


async def whole(request: Request, bounds: BodyLimits, share: Share) -> bytes:
    """Read a body that is no image or form, as it is.

    Raises `TooLarge`, `CompressedBody`, `BodyTimeout`, `Overloaded` or `ClientDisconnected`.
    """
    _check_coding(request)
    async with _arriving(bounds.seconds):
        return b"".join([chunk async for chunk in _bounded(request, bounds.nbytes, share)])


def _check_coding(request: Request) -> None:
    """Raise `CompressedBody` if the body has a Content-Encoding."""
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if {coding.strip() for coding in codings} - {"", "identity"}:
        raise CompressedBody(
            "the body is compressed, as its Content-Encoding says; send it without "
            "(Accept-Encoding: identity)"
        )


@asynccontextmanager
async def _arriving(seconds: float) -> AsyncIterator[None]:
    """Limit the time in which a body arrives."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from error
    except ClientDisconnect as error:
        raise ClientDisconnected("the client disconnected while sending") from error


async def _bounded(request: Request, limit: int, share: Share) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes; the limit is {limit}")
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > limit:
            raise TooLarge(f"the body is over {limit} bytes")
        share.add(len(chunk))
        yield chunk


async def _raw(chunks: AsyncIterator[bytes]) -> Upload:
    data = b"".join([chunk async for chunk in chunks])
    if not data:
        raise MalformedRequest("the body is empty; send an image")
    return Upload(None, data)


async def _unpacked(body: bytes, kind: Kind, bounds: BodyLimits, share: Share) -> list[Upload]:
    images = archive_body.images(body, kind, max_bytes=bounds.nbytes, max_images=bounds.files)
    return [_upload(name, image, share) async for name, image in images]


def _upload(name: str | None, image: bytes | ServiceError | str, share: Share) -> Upload:
    """Make an upload of what was unpacked, which takes memory beside the body, or of a URL."""
    if isinstance(image, ServiceError):
        return Upload(name, b"", image)
    if isinstance(image, str):
        return Upload(name, b"", url=image)
    share.add(len(image))
    return Upload(name, image)
