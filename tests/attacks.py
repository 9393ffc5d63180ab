"""Malicious and broken clients, as coroutines on raw sockets that return the outcome.

They send bytes without an HTTP client; random choices come from a seed.
"""

import asyncio
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
LAST_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
STAGES = ("connected", "mid-head", "head", "mid-body", "body", "answer")
PATIENCE = 30.0  # seconds, as a test's own limit


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes received until the service closed the connection, and the seconds until then."""

    data: bytes
    seconds: float

    @property
    def statuses(self) -> list[int]:
        """The statuses of the responses in order, without interim ones."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", self.data)]


def post(image: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a request to classify an image, or its beginning if `length` is larger than it."""
    declared = f"Content-Length: {len(image) if length is None else length}"
    lines = ["POST /classify?views=single HTTP/1.1", "Host: here", "Content-Type: image/png"]
    return "\r\n".join([*lines, declared, *headers, "", ""]).encode() + image


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and abort the connection at the end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection is closed or reset."""
    data = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            data += chunk
    return data


async def speak(
    port: int, chunks: Iterable[bytes], *, pause: float = 0.0, shut: bool = False
) -> Reply:
    """Send chunks with pauses, and read until the connection is closed."""
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
        reading = asyncio.create_task(_rest(reader))
        with suppress(ConnectionError):
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
                await asyncio.wait([reading], timeout=pause)
                if reading.done():
                    break
            if shut:
                writer.write_eof()
        return Reply(await reading, time.monotonic() - started)


def single(data: bytes) -> Iterable[bytes]:
    """Split into single bytes."""
    return (data[n : n + 1] for n in range(len(data)))


async def slow_head(port: int, *, pause: float) -> Reply:
    """Send a head of many bytes, one at a time."""
    return await speak(port, single(LIVEZ[:-4] + b"\r\nX-Slow: " + b"s" * 10_000), pause=pause)


async def slow_body(port: int, *, pause: float) -> Reply:
    """Send a body, one byte at a time."""
    return await speak(port, [post(b"", length=10_000), *[b"s"] * 10_000], pause=pause)


async def endless(port: int, beginning: bytes, more: bytes) -> Reply:
    """Send a beginning, then the same again and again, until the connection is closed."""
    return await speak(port, (more if n else beginning for n in range(1_000_000)))


def narrow(port: int) -> socket.socket:
    """Connect with a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((HOST, port))
    client.setblocking(False)  # noqa: FBT003 - socket's own
    return client


async def not_reading(port: int, request: bytes) -> float:
    """Send requests and read no response; returns the seconds until the connection is closed."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    with narrow(port) as client, suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while True:
                await loop.sock_sendall(client, request * 1000)
    return time.monotonic() - started


async def leave(port: int, stage: str, image: bytes, *, reset: bool = False) -> None:
    """Disconnect at a stage of a classify request: with a FIN, or with a reset."""
    whole = post(image)
    head = whole.index(b"\r\n\r\n") + 4
    sent = {"connected": 0, "mid-head": head // 2, "head": head, "mid-body": head + 10}
    async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
        writer.write(whole[: sent.get(stage, len(whole))])
        await writer.drain()
        if stage == "answer":
            await reader.read(10)
        if reset:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def idle(port: int, number: int, *, ask: bool = True) -> AsyncIterator[list[socket.socket]]:
    """Keep `number` connections open, each after one response, or without a request."""
    loop = asyncio.get_running_loop()
    kept: list[socket.socket] = []

    async def connect() -> None:
        client = socket.socket()
        kept.append(client)
        client.setblocking(False)  # noqa: FBT003 - socket's own
        await loop.sock_connect(client, (HOST, port))
        if ask:
            with suppress(ConnectionError):
                await loop.sock_sendall(client, LIVEZ)
                await loop.sock_recv(client, 65536)

    try:
        while len(kept) < number:  # no more at once than the backlog
            await asyncio.gather(*(connect() for _ in range(min(100, number - len(kept)))))
        yield kept
    finally:
        for client in kept:
            client.close()


def is_open(client: socket.socket) -> bool:
    """Return whether the service has left a connection open, after reading all data."""
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


async def any_of_them(port: int, image: bytes, *, seed: int, pause: float) -> None:
    """Run one attack, chosen by the seed."""
    chance = random.Random(seed)
    attacks = (
        lambda: slow_head(port, pause=pause),
        lambda: slow_body(port, pause=pause),
        lambda: endless(port, b"GET /livez HTTP/1.1\r\nX: ", b"y" * 4096),
        lambda: endless(port, b"GET /livez HTTP/1.1\r\n", b"X: y\r\n" * 100),
        lambda: speak(port, [LIVEZ * 999 + LAST_LIVEZ]),
        lambda: speak(port, [chance.randbytes(1000)], shut=True),
        lambda: leave(port, chance.choice(STAGES), image, reset=chance.random() < 0.5),
    )
    with suppress(ConnectionError):
        await chance.choice(attacks)()
