"""Read a request's body to images in memory, with limits that apply while it streams."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.api import archive_body, json_body, multipart, parameters
from service.api.json_body import Shape
from service.api.multipart import Part
from service.errors import (
    BodyTimeout,
    ClientDisconnected,
    CompressedBody,
    InvalidParameter,
    MalformedRequest,
    MissingFile,
    Overloaded,
    ServiceError,
    TooLarge,
    UnsupportedType,
)
from service.imaging.archives import Kind
from service.settings import Settings

FIELD = "file"  # the name of a form's image parts
# What other services and clients call them.
ALIASES = ("data", "file[]", "files", "files[]", "image", "images")
RAW = "application/octet-stream"  # accepted as image/* is, for an image that is the body
COPIES = 2  # of a body in memory, as measured
BUSY_RETRY = 1.0  # seconds; how long uploads take is not predictable
_MAX_OTHER_PARTS = 16  # form fields, and file inputs left empty
_MAX_FIELD = 2048  # bytes of a form field
_IMAGES = frozenset({FIELD, *ALIASES})
_CHARSET = "_charset_"  # names a form's encoding (RFC 7578); ignored


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as received; its file name is for the response only.

    An image of an archive, or in base64, that cannot be read has no data but an `error`; one in
    JSON that is still to be fetched has none but its `url`.
    """

    filename: str | None
    data: bytes
    error: ServiceError | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """The images of a request, and its form fields, or those of JSON, which have types."""

    uploads: list[Upload]
    fields: Mapping[str, Any]
    typed: bool = False


@dataclass(slots=True)
class Budget:
    """Memory that all uploads in flight share.

    A byte of a body counts `copies` times: it is copied while the body is joined, and to the worker
    process.
    """

    limit: int
    copies: int = 1
    used: int = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest body that fits."""
        return self.limit // self.copies

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give a request its share, and release it in the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()


@dataclass(slots=True)
class Share:
    """The part of the budget that one request uses."""

    budget: Budget
    used: int = 0

    def add(self, nbytes: int) -> None:
        """Use more; raises `Overloaded` if the budget is full, `TooLarge` if it is too small."""
        copied = self.budget.copies * nbytes
        limit = self.budget.limit
        if self.used + copied > limit:
            raise TooLarge(
                f"the body and its copies are over {limit} bytes, the memory for uploads"
            )
        if self.budget.used + copied > limit:
            raise Overloaded(
                f"uploads in flight fill their {limit} bytes of memory", retry_after=BUSY_RETRY
            )
        self.budget.used += copied
        self.used += copied

    def release(self) -> None:
        """Give all of it back."""
        self.budget.used -= self.used
        self.used = 0


@dataclass(frozen=True, slots=True)
class Bounds:
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
    bounds: Bounds,
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
            limits = _PartLimits(bounds.files, fields)
            parts = await multipart.parts(chunks, options.get(b"boundary"), limits.check)
            return _form(parts)
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


async def whole(request: Request, bounds: Bounds, share: Share) -> bytes:
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
        raise TooLarge(f"the body is {declared} bytes and may be {limit}")
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


async def _unpacked(body: bytes, kind: Kind, bounds: Bounds, share: Share) -> list[Upload]:
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


@dataclass(slots=True)
class _PartLimits:
    """Refuses invalid parts of a form before all of it has arrived."""

    max_files: int
    fields: Collection[str]
    files: set[int] = field(default_factory=set)  # numbers of the parts
    seen: dict[str, int] = field(default_factory=dict)  # names to numbers of the first parts

    def check(self, number: int, part: Part) -> None:
        """Check a part, as far as it has arrived."""
        if number > self.max_files + _MAX_OTHER_PARTS:
            raise TooLarge(f"the request has over {self.max_files} parts; send fewer")
        if _is_unused(part):
            return
        first = self.seen.setdefault(part.name or "", number)
        if part.name in _IMAGES:
            self.files.add(number)
            if len(self.files) > self.max_files:
                raise TooLarge(f"the request has over {self.max_files} images; send fewer")
        elif not part.name:
            raise InvalidParameter(f"a part of the form has no name; call an image {FIELD!r}")
        elif part.name not in self.fields:
            raise parameters.unknown("form field", part.name, {FIELD, *self.fields}, self.seen)
        elif first != number:
            raise InvalidParameter(f"the form field {part.name} is given twice; give it once")
        elif len(part.data) > _MAX_FIELD:
            raise InvalidParameter(f"the form field {part.name} is over {_MAX_FIELD} bytes")


def _is_unused(part: Part) -> bool:
    """Tell whether a part is empty so far, as a browser's of an empty file input."""
    if part.name == _CHARSET:
        return True
    is_file = part.filename is not None or part.name in {None, "", *_IMAGES}
    return is_file and not part.filename and not part.data


def _form(parts: list[Part]) -> Form:
    """Give the images of a form and its fields; raises `MissingFile`."""
    used = [part for part in parts if not _is_unused(part)]
    uploads = [Upload(part.filename, bytes(part.data)) for part in used if part.name in _IMAGES]
    fields = {
        part.name: part.data.decode("utf-8", "replace")
        for part in used
        if part.name and part.name not in _IMAGES
    }
    if not uploads:
        if any(part.name in _IMAGES for part in parts):
            raise MissingFile(f"the form's part {FIELD!r} is empty: no image was chosen")
        among = f", only {', '.join(fields)}" if fields else ""
        raise MissingFile(f"there is no part named {FIELD!r}{among}; send the image as one")
    return Form(uploads, fields)
