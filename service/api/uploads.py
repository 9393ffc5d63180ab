"""A request's body to its pictures, in memory, bounded while it streams."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import (
    CallerGone,
    MalformedRequest,
    MissingFile,
    Overloaded,
    SlowUpload,
    TooLarge,
    UnsupportedType,
)

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"  # the name of a form's picture parts
RAW = "application/octet-stream"  # as good as image/* for a picture that is the body
BUSY_RETRY = 1.0  # seconds; uploads come and go faster than anyone could predict
_MAX_PARTS_BESIDES = 16  # form fields nobody asked for


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture as it came; its name is for the answer only."""

    filename: str | None
    data: bytes


@dataclass(slots=True)
class Budget:
    """Memory that all uploads in flight share."""

    limit: int
    used: int = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give a request its share, for as long as its pictures are needed."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.used


@dataclass(slots=True)
class Share:
    """What one request uses of the budget."""

    budget: Budget
    used: int = 0

    def add(self, nbytes: int) -> None:
        """Use more; raises `Overloaded` when there is no more, `TooLarge` when there never is."""
        if self.used + nbytes > self.budget.limit:
            raise TooLarge(f"the body is over {self.budget.limit} bytes, the memory for uploads")
        if self.budget.used + nbytes > self.budget.limit:
            raise Overloaded(
                f"uploads in flight fill their {self.budget.limit} bytes of memory",
                retry_after=BUSY_RETRY,
            )
        self.budget.used += nbytes
        self.used += nbytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request; see `service.settings` for each."""

    nbytes: int
    files: int
    seconds: float


async def read(request: Request, bounds: Bounds, share: Share) -> list[Upload]:
    """Read the `file` parts of a multipart body, or a raw picture as the only one.

    Raises `MalformedRequest`, `MissingFile`, `TooLarge`, `UnsupportedType`, `SlowUpload`,
    `Overloaded` or `CallerGone`.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    async with _arriving(bounds.seconds):
        chunks = _bounded(request, bounds.nbytes, share)
        if kind == b"multipart/form-data":
            return await _parts(chunks, options, bounds.files)
        if kind.startswith(b"image/") or kind == RAW.encode():
            return [await _raw(chunks)]
    raise UnsupportedType(
        "send multipart/form-data with a `file` part, or the picture itself as image/*"
    )


async def whole(request: Request, bounds: Bounds, share: Share) -> bytes:
    """Read a body that is something else than pictures, as it is.

    Raises `TooLarge`, `UnsupportedType` if it is compressed, `SlowUpload`, `Overloaded` or
    `CallerGone`.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedType("the body is compressed; send it as it is")
    async with _arriving(bounds.seconds):
        return b"".join([chunk async for chunk in _bounded(request, bounds.nbytes, share)])


@asynccontextmanager
async def _arriving(seconds: float) -> AsyncIterator[None]:
    """Bound the time in which a body arrives."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise SlowUpload(f"the body did not arrive within {seconds:g} s") from error
    except ClientDisconnect as error:
        raise CallerGone("the caller hung up while sending") from error


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
        raise MalformedRequest("the body is empty; send a picture")
    return Upload(None, data)


async def _parts(
    chunks: AsyncIterator[bytes], options: dict[bytes, bytes], files: int
) -> list[Upload]:
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedRequest("the multipart Content-Type names no boundary")
    form = _Form(files)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest("the multipart body is broken") from error
    if not form.closed:
        raise MalformedRequest("the multipart body is empty or cut short")
    if not form.uploads:
        raise MissingFile(f"there is no part named {FIELD!r}; send the picture as one")
    for upload in form.uploads:
        if not upload.data:
            raise MalformedRequest("a picture is empty; send its bytes")
    return form.uploads


@dataclass(slots=True)
class _Form:
    """Collects the parts that a multipart parser comes across."""

    max_files: int
    uploads: list[Upload] = field(default_factory=list)
    closed: bool = False
    parts: int = 0
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""
    body: bytearray | None = None  # of the part that is being read, if it is wanted

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self.begin,
            "on_header_field": lambda data, start, end: self.header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
            "on_header_end": self.end_header,
            "on_headers_finished": self.end_headers,
            "on_part_data": self.extend,
            "on_part_end": self.end,
            "on_end": self.close,
        }

    def begin(self) -> None:
        self.parts += 1
        if self.parts > self.max_files + _MAX_PARTS_BESIDES:
            raise TooLarge(f"the request has over {self.max_files} parts; send fewer")
        self.disposition = b""

    def end_header(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def end_headers(self) -> None:
        _, options = parse_options_header(self.disposition)
        self.body = bytearray() if options.get(b"name") == FIELD.encode() else None
        if self.body is not None and len(self.uploads) == self.max_files:
            raise TooLarge(f"the request has over {self.max_files} pictures; send fewer")

    def extend(self, data: bytes, start: int, end: int) -> None:
        if self.body is not None:
            self.body += data[start:end]

    def end(self) -> None:
        if self.body is not None:
            _, options = parse_options_header(self.disposition)
            name = options.get(b"filename")
            filename = name.decode("utf-8", "replace") if name is not None else None
            self.uploads.append(Upload(filename, bytes(self.body)))

    def close(self) -> None:
        self.closed = True
