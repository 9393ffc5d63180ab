"""A request's body to its images, in memory, bounded while it streams."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.api import multipart, parameters
from service.api.multipart import Part
from service.errors import (
    BodyTimeout,
    ClientDisconnected,
    CompressedBody,
    InvalidParameter,
    MalformedRequest,
    MissingFile,
    Overloaded,
    TooLarge,
    UnsupportedType,
)

FIELD = "file"  # the name of a form's image parts
RAW = "application/octet-stream"  # as good as image/* for an image that is the body
COPIES = 2  # of a body in memory, as measured
BUSY_RETRY = 1.0  # seconds; uploads come and go faster than anyone could predict
EMPTY = "an image is empty; send its bytes"
_MAX_PARTS_BESIDES = 16  # form fields, and files that were not chosen
_MAX_FIELD = 2048  # bytes of a form field
_CHARSET = "_charset_"  # what a form says of its encoding (RFC 7578), and is no field


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came; its name is for the answer only."""

    filename: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What a request brings: images, and the form fields beside them."""

    uploads: list[Upload]
    fields: Mapping[str, str]


@dataclass(slots=True)
class Budget:
    """Memory that all uploads in flight share.

    A byte of a body counts `copies` times: it is copied while the body is put together, and to the
    process that decodes it.
    """

    limit: int
    copies: int = 1
    used: int = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest body that there is memory for."""
        return self.limit // self.copies

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give a request its share, for as long as its images are needed."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()


@dataclass(slots=True)
class Share:
    """What one request uses of the budget."""

    budget: Budget
    used: int = 0

    def add(self, nbytes: int) -> None:
        """Use more; raises `Overloaded` when there is no more, `TooLarge` when there never is."""
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
        """Use nothing any more."""
        self.budget.used -= self.used
        self.used = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request; see `service.settings` for each."""

    nbytes: int
    files: int
    seconds: float


async def read(
    request: Request, bounds: Bounds, share: Share, fields: Collection[str] = ()
) -> Form:
    """Read the `file` parts of a multipart body, or a raw image as the only one.

    `fields` are the names of the form fields that may come with them. A file that a browser's form
    left unchosen is ignored. Raises `MalformedRequest`, `MissingFile`, `TooLarge`,
    `InvalidParameter`, `UnsupportedType`, `BodyTimeout`, `Overloaded` or `ClientDisconnected`.
    """
    _check_coding(request)
    kind, options = parse_options_header(request.headers.get("content-type"))
    async with _arriving(bounds.seconds):
        chunks = _bounded(request, bounds.nbytes, share)
        if kind == b"multipart/form-data":
            collected = _Parts(bounds.files, fields)
            found = await multipart.parts(chunks, options.get(b"boundary"), collected.check)
            return _form(found)
        if kind.startswith(b"image/") or kind == RAW.encode():
            return Form([await _raw(chunks)], {})
    raise UnsupportedType(
        "send multipart/form-data with a `file` part, or the image itself as image/*"
    )


async def whole(request: Request, bounds: Bounds, share: Share) -> bytes:
    """Read a body that is something else than images, as it is.

    Raises `TooLarge`, `CompressedBody`, `BodyTimeout`, `Overloaded` or `ClientDisconnected`.
    """
    _check_coding(request)
    async with _arriving(bounds.seconds):
        return b"".join([chunk async for chunk in _bounded(request, bounds.nbytes, share)])


def _check_coding(request: Request) -> None:
    """Raise `CompressedBody` unless the body is sent as it is."""
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if {coding.strip() for coding in codings} - {"", "identity"}:
        raise CompressedBody(
            "the body is compressed, as its Content-Encoding says; send it without "
            "(Accept-Encoding: identity)"
        )


@asynccontextmanager
async def _arriving(seconds: float) -> AsyncIterator[None]:
    """Bound the time in which a body arrives."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {seconds:g} s") from error
    except ClientDisconnect as error:
        raise ClientDisconnected("the caller hung up while sending") from error


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


@dataclass(slots=True)
class _Parts:
    """Refuses what a form may not have, before it has all arrived."""

    max_files: int
    fields: Collection[str]
    files: set[int] = field(default_factory=set)  # their numbers
    seen: dict[str, int] = field(default_factory=dict)  # the numbers of the fields, by their names

    def check(self, number: int, part: Part) -> None:
        """Raise what is wrong with a part, as far as it has come."""
        if number > self.max_files + _MAX_PARTS_BESIDES:
            raise TooLarge(f"the request has over {self.max_files} parts; send fewer")
        if _is_unused(part):
            return
        if part.name == FIELD:
            self.files.add(number)
            if len(self.files) > self.max_files:
                raise TooLarge(f"the request has over {self.max_files} images; send fewer")
        elif not part.name:
            raise InvalidParameter(f"a part of the form has no name; call an image {FIELD!r}")
        elif part.name not in self.fields:
            raise parameters.unknown("form field", part.name, {FIELD, *self.fields})
        elif self.seen.setdefault(part.name, number) != number:
            raise InvalidParameter(f"the form field {part.name} is given twice; give it once")
        elif len(part.data) > _MAX_FIELD:
            raise InvalidParameter(f"the form field {part.name} is over {_MAX_FIELD} bytes")


def _is_unused(part: Part) -> bool:
    """Tell whether a part says nothing so far, as a browser's for a file that was not chosen."""
    if part.name == _CHARSET:
        return True
    is_file = part.filename is not None or part.name in {None, "", FIELD}
    return is_file and not part.filename and not part.data


def _form(parts: list[Part]) -> Form:
    """Give the images of a form and its fields, or raise `MissingFile`."""
    used = [part for part in parts if not _is_unused(part)]
    uploads = [Upload(part.filename, bytes(part.data)) for part in used if part.name == FIELD]
    if not uploads:
        if any(part.name == FIELD for part in parts):
            raise MissingFile(f"the form's part {FIELD!r} is empty: no image was chosen")
        raise MissingFile(f"there is no part named {FIELD!r}; send the image as one")
    fields = {
        part.name: part.data.decode("utf-8", "replace")
        for part in used
        if part.name and part.name != FIELD
    }
    return Form(uploads, fields)
