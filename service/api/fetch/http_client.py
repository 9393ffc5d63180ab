"""One HTTP request for an image, to an address that has been checked."""

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata

import h11

from service.api.fetch.image_url import ImageUrl

_READ = 64 * 1024  # bytes at once
_MOST_HEAD = 32 * 1024  # bytes of a head of which more is to come
_MOST_INTERIM = 8  # responses (1xx) before the one
# A body in tiny chunks would cost more to parse than to decode.
_MOST_CHUNKS = 10_000
_LEAST_CHUNK = 512  # bytes, of all others on average

_Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class NoAnswer(Exception):
    """There is no connection, or what comes over it is no answer to the request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a response, its header names in lower case, and its body as it arrives."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class HttpClient:
    """Sends GET requests: no proxies, cookies or credentials, and a connection for each."""

    def __init__(self) -> None:
        self._tls = ssl.create_default_context()
        self._agent = f"googlenet-service/{metadata.version('googlenet-service')}"

    @asynccontextmanager
    async def get(self, url: ImageUrl, addresses: Sequence[str]) -> AsyncIterator[Answer]:
        """Request a URL from the first of these addresses that accepts a connection.

        Nothing is looked up: the URL's host is for the header `Host` and for the certificate. Heads
        and numbers of chunks are bounded; raises `NoAnswer`. Times are for the caller to limit.
        """
        try:
            reader, writer = await self._connected(url, addresses)
            try:
                async with aclosing(self._events(url, reader, writer)) as events:
                    response = await _response(events)
                    headers = {
                        name.decode("latin-1"): value.decode("latin-1")
                        for name, value in response.headers
                    }
                    yield Answer(response.status_code, headers, _body(events))
            finally:
                writer.transport.abort()  # which waits for nothing, unlike TLS's own way
        except (OSError, h11.ProtocolError) as error:
            raise NoAnswer from error

    async def _connected(
        self, url: ImageUrl, addresses: Sequence[str]
    ) -> tuple[StreamReader, StreamWriter]:
        tls, name = (self._tls, url.host) if url.scheme == "https" else (None, None)
        failure = OSError("the host has no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address, url.port, ssl=tls, server_hostname=name
                )
            except OSError as error:
                failure = error
        raise failure

    async def _events(
        self, url: ImageUrl, reader: StreamReader, writer: StreamWriter
    ) -> AsyncGenerator[_Event]:
        """Send the request; gives the events of its response."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        headers = [
            ("Host", url.authority),
            ("User-Agent", self._agent),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=url.target, headers=headers)
        writer.write(parser.send(request) + parser.send(h11.EndOfMessage()))
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await reader.read(_READ))
            else:
                yield event


async def _response(events: AsyncIterator[_Event]) -> h11.Response:
    """Read the head of a response, and skip interim ones."""
    for _ in range(1 + _MOST_INTERIM):
        event = await anext(events)
        if isinstance(event, h11.Response):
            return event
    raise NoAnswer


async def _body(events: AsyncIterator[_Event]) -> AsyncIterator[bytes]:
    """Give the chunks of a body."""
    count = nbytes = 0
    async for event in events:
        if not isinstance(event, h11.Data):
            return
        count += 1
        nbytes += len(event.data)
        if count > _MOST_CHUNKS + nbytes // _LEAST_CHUNK:
            raise NoAnswer
        yield bytes(event.data)
        await asyncio.sleep(0)  # many chunks may come in one piece
