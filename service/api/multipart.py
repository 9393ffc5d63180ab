"""Parse a multipart body to its parts, as it arrives."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from service.api import content_disposition
from service.errors import MalformedRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass(slots=True)
class Part:
    """One part: its names, and the data that has arrived."""

    name: str | None
    filename: str | None
    data: bytearray = field(default_factory=bytearray)


async def parts(
    chunks: AsyncIterator[bytes], boundary: bytes | None, check: Callable[[int, Part], None]
) -> list[Part]:
    """Parse all parts; raises `MalformedRequest` if the body is broken.

    `check` is called with the number of a part and the part, once with its headers and again with
    more data, and raises if it is invalid.
    """
    if not boundary:
        raise MalformedRequest("the multipart Content-Type names no boundary")
    collector = _Collector(check)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest("the multipart body is broken") from error
    if not collector.closed:
        raise MalformedRequest("the multipart body is empty or cut short")
    return collector.parts


@dataclass(slots=True)
class _Collector:
    """Collects the parts from the parser's callbacks."""

    check: Callable[[int, Part], None]
    parts: list[Part] = field(default_factory=list)
    closed: bool = False
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_header_field": lambda data, start, end: self.header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
            "on_header_end": self.end_header,
            "on_headers_finished": self.end_headers,
            "on_part_data": self.extend,
            "on_end": self.close,
        }

    def end_header(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def end_headers(self) -> None:
        disposition = content_disposition.parse(self.disposition)
        self.disposition = b""
        self.parts.append(Part(disposition.name, disposition.filename))
        self.check(len(self.parts), self.parts[-1])

    def extend(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]
        self.check(len(self.parts), self.parts[-1])

    def close(self) -> None:
        self.closed = True
