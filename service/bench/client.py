"""A light HTTP/1.1 client: sends prepared requests, and parses responses in C (httptools).

It shares the machine with the service that it measures, so it does as little work as possible.
Connections are kept alive.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from service.errors import BenchError

_TIMEOUT = 60.0  # seconds
_BOUNDARY = "-----------------------------7f3c0a4e9b5d"


@dataclass(frozen=True, slots=True)
class Target:
    """The address of a service."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Parse `http://host[:port][/path]`; raises `BenchError` for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port or 80
            (parts.hostname or "").encode("idna")  # as connecting does
        except ValueError as error:
            raise BenchError(f"{url!r} is not a valid URL: {error}") from error
        if parts.scheme != "http" or not parts.hostname:
            raise BenchError(f"{url!r} is not of the form http://host:port")
        return cls(parts.hostname, port, parts.path.rstrip("/"))

    def get(self, path: str) -> bytes:
        """Prepare a GET."""
        return self._request("GET", path, {}, b"")

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Prepare a POST."""
        return self._request("POST", path, headers, body)

    def post_form(self, path: str, image: bytes, headers: Mapping[str, str]) -> bytes:
        """Prepare a POST of an image as `curl -F file=@...` sends it."""
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
            'filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        )
        body = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        return self.post(path, body, {**headers, **kind})

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Reply:
    """A response; status 0 for a broken connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""


class Client:
    """A connection pool: as many connections as concurrent requests, opened when needed."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[_Connection] = []

    async def ask(self, request: bytes) -> Reply:
        """Send a prepared request over an idle connection and wait for the response.

        A timeout, after a minute, counts as a broken connection.
        """
        connection = None
        try:
            async with asyncio.timeout(_TIMEOUT):
                connection = await self._connected()
                reply = await connection.ask(request)
        except OSError:  # including TimeoutError
            reply = Reply()
        finally:
            if connection is not None and not connection.is_free:
                connection.close()
        if connection is not None and connection.is_open:
            self._idle.append(connection)
        return reply

    async def _connected(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self.target.host, self.target.port
        )
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class _Connection(asyncio.Protocol):
    """A connection with one request at a time; the `on_...` are httptools' callbacks."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()
        self._response: asyncio.Future[Reply] | None = None
        self.is_open = True

    @property
    def is_free(self) -> bool:
        """Whether no response is outstanding, so that the next request may be sent."""
        return self._response is None or (self._response.done() and not self._response.cancelled())

    async def ask(self, request: bytes) -> Reply:
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._response

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_open = False
        if self._response is not None and not self._response.done():
            self._response.set_exception(ConnectionError("the service closed the connection"))

    def on_message_begin(self) -> None:
        self._reply = Reply()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reply.body += body

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        if self._response is not None and not self._response.done():
            self._response.set_result(self._reply)
