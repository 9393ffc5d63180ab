"""Images by URL, from servers on this machine: what is fetched, and what nobody gets to fetch."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from test_classify import plain

from service.api.fetch.fetch_policy import FetchPolicy
from service.api.fetch.fetcher import MOST_AT_ONCE, Fetcher
from service.api.fetch.http_client import HttpClient
from service.api.fetch.images import Quota
from service.api.upload_budget import Budget, Share
from service.errors import FetchFailed, TooLarge
from service.fetch_settings import networks
from service.serving.metrics.metrics import Metrics

HERE, HOST = "127.0.0.1", "images.example.org"
LOOPBACK = "127.0.0.0/8"
NAME = f"http://{HOST}"
LIMIT = 100_000  # bytes
RED = plain("red")


# The fetcher, with servers that say what they are told to.


def response(body: bytes = RED, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", *headers]
    if not any("-length" in it.lower() or "-encoding: ch" in it.lower() for it in headers):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def redirect(location: str) -> bytes:
    return response(b"", "302 Found", f"Location: {location}")


@dataclass
class Site:
    """A server: its port, and the heads of the requests that it got."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[Any] | None] = field(default_factory=list)


Writes = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def site(*answers: bytes | Writes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """A server that gives each connection its answer, and the last one to all others."""
    ours = Site()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours.tasks.append(asyncio.current_task())
        try:
            ours.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = answers[min(len(ours.heads), len(answers)) - 1]
            if isinstance(answer, bytes):
                writer.write(answer.replace(b"PORT", str(ours.port).encode()))
            else:
                await answer(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):  # the other end has enough
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, HERE, 0, ssl=tls) as server:
        ours.port = server.sockets[0].getsockname()[1]
        yield ours
        await asyncio.gather(*filter(None, ours.tasks))


@dataclass
class Fetching:
    """A fetcher that finds all names at the same addresses, and what it has done."""

    ports: Sequence[int]
    found: Sequence[str] = (HERE,)
    seconds: float = 10
    share: Share = field(default_factory=lambda: Share(Budget(10 * LIMIT)))
    metrics: Metrics = field(default_factory=Metrics)
    looked_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = FetchPolicy(ports=frozenset(self.ports), networks=networks(LOOPBACK))
        get = HttpClient().get
        self.fetcher = Fetcher(policy, self.seconds, self.metrics, get, self.lookup)

    def lookup(self, host: str, _: int) -> Sequence[str]:
        """Find the addresses; any other ones the second time, as a hostile name server would."""
        is_known = host in self.looked_up
        self.looked_up.append(host)
        return [host] if host[0] in ":1" else ["10.0.0.1"] if is_known else self.found

    async def fetch(self, url: str) -> bytes:
        """Fetch a URL for a request of its own."""
        return await self.fetcher.fetch(url, Quota(LIMIT, self.share))

    async def fails(self, url: str, outcome: str = "failed") -> None:
        """Check that a URL fails with the one sentence, and how it is counted."""
        with pytest.raises(FetchFailed) as failure:
            await self.fetch(url)
        assert str(failure.value) == (
            "the image could not be fetched: its URL has to answer 200 with the image itself, from"
            " a public address, in time and uncompressed"
        )
        assert self.count(outcome) == 1

    def count(self, outcome: str) -> float | None:
        """Count an outcome."""
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("googlenet_fetches_total", labels)


async def test_an_image_is_fetched_by_its_name_and_without_proxies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{HERE}:1")
    async with site(response(RED, "200 OK", "Set-Cookie: a=b")) as ours:
        fetching = Fetching([ours.port])
        assert await fetching.fetch(f"{NAME}:{ours.port}/%61.png?b=c#d") == RED
        (head,) = ours.heads
    request, *fields = head.rstrip().split("\r\n")
    assert request == "GET /%61.png?b=c HTTP/1.1"
    names = [line.partition(":")[0].lower() for line in fields]
    assert names == ["host", "user-agent", "accept", "accept-encoding", "connection"]
    assert fields[0].endswith(f" {HOST}:{ours.port}")
    assert (fetching.looked_up, fetching.count("ok")) == ([HOST], 1)
    assert fetching.share.used == len(RED)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate of `HOST`, which this process trusts."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return context


async def test_a_certificate_is_that_of_the_name(trusted: ssl.SSLContext) -> None:
    named = []
    trusted.sni_callback = lambda _, name, __: named.append(name)
    async with site(response(), tls=trusted) as ours:
        assert await Fetching([ours.port]).fetch(f"https://{HOST}:{ours.port}/") == RED
        await Fetching([ours.port]).fails(f"https://other.example.org:{ours.port}/")
        await Fetching([ours.port]).fails(f"https://{HERE}:{ours.port}/")
        await Fetching([ours.port]).fails(f"http://{HOST}:{ours.port}/")
    assert named == [HOST, "other.example.org", None]


async def test_a_certificate_that_nobody_has_signed_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST).configure_cert(context)
    async with site(response(), tls=context) as ours:
        await Fetching([ours.port]).fails(f"https://{HOST}:{ours.port}/")
        assert ours.heads == []


@pytest.mark.parametrize("found", [["10.0.0.1"], [HERE, "10.0.0.1"], [HERE, "::ffff:10.0.0.1"]])
async def test_a_name_with_any_address_that_is_not_allowed_is_refused(found: list[str]) -> None:
    async with site(response()) as ours:
        await Fetching([ours.port], found).fails(f"{NAME}:{ours.port}/", "refused")
        assert ours.heads == []


async def test_the_next_address_is_tried_where_nothing_listens() -> None:
    async with site(response()) as ours:
        fetching = Fetching([ours.port], ["127.0.0.2", HERE])
        assert await fetching.fetch(f"{NAME}:{ours.port}/") == RED
        await Fetching([ours.port], ["127.0.0.2"]).fails(f"{NAME}:{ours.port}/")


async def test_a_name_that_is_not_found_fails_like_all_else() -> None:
    fetching = Fetching([80])
    fetching.fetcher = Fetcher(FetchPolicy(), 10, fetching.metrics, HttpClient().get)
    await fetching.fails("http://nothing.invalid/")


async def test_redirects_are_followed_and_each_is_looked_up() -> None:
    hops = [redirect(f"http://b{n}.example.org:PORT/{n}") for n in range(4)]
    async with site(*hops[:3], response()) as ours:
        fetching = Fetching([ours.port])
        assert await fetching.fetch(f"{NAME}:{ours.port}/") == RED
        assert fetching.looked_up == [HOST, *(f"b{n}.example.org" for n in range(3))]
    async with site(*hops, response()) as ours:
        await Fetching([ours.port]).fails(f"{NAME}:{ours.port}/")
        assert len(ours.heads) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254:PORT/latest/meta-data/",
        "http://metadata.google.internal:PORT/",
        f"//{HOST}:PORT/",  # whose address is another one by now
        "http://[::1]:PORT/",
        f"http://{HERE}:22/",
        "http://2130706433:PORT/",
        f"http://a@{HERE}:PORT/",
        "file:///etc/passwd",
        f"gopher://{HERE}:PORT/",
        "",
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    async with site(redirect(location), response()) as ours:
        fetching = Fetching([ours.port])
        fetching.looked_up.append("metadata.google.internal")
        await fetching.fails(f"{NAME}:{ours.port}/", "refused")
        assert len(ours.heads) == 1


async def test_a_redirect_to_itself_ends() -> None:
    async with site(redirect(f"http://{HERE}:PORT/")) as ours:
        await Fetching([ours.port]).fails(f"http://{HERE}:{ours.port}/")
        assert len(ours.heads) == 4


CHUNKED = "Transfer-Encoding: chunked"
NO_IMAGES = {
    "another status": response(RED, "404 Not Found"),
    "a part": response(RED, "206 Partial Content"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "another protocol": response(b"", "101 Switching", "Upgrade: a", "Connection: upgrade"),
    "gzip": response(RED, "200 OK", "Content-Encoding: gzip"),
    "two codings": response(RED, "200 OK", "Content-Encoding: identity, br"),
    "a body cut short": response(RED, "200 OK", f"Content-Length: {len(RED) + 1}"),
    "chunks cut short": response(b"2\r\nab\r\n", "200 OK", CHUNKED),
    "chunks that are none": response(b"x", "200 OK", CHUNKED),
    "two lengths": response(RED, "200 OK", "Content-Length: 1", "Content-Length: 2"),
    "a negative length": response(RED, "200 OK", "Content-Length: -1"),
    "no response": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(100),
    "HTTP/0.9": RED,
    "a huge head": response(RED, "200 OK", *(f"A{n}: {'a' * 1000}" for n in range(200))),
    "a huge header": response(RED, "200 OK", f"A: {'a' * 200_000}"),
    "an endless status line": b"HTTP/1.1 200 " + b"a" * 200_000,
    "interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + response(),
    "tiny chunks": response(b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", "200 OK", CHUNKED),
}  # fmt: skip


@pytest.mark.parametrize("answer", NO_IMAGES.values(), ids=NO_IMAGES)
async def test_what_is_no_whole_image_fails_with_the_same_sentence(answer: bytes) -> None:
    async with site(answer) as ours:
        await Fetching([ours.port]).fails(f"{NAME}:{ours.port}/")


async def test_bodies_may_come_in_every_form_of_http() -> None:
    chunks = b"5\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\nA: b\r\n\r\n" % (RED[:5], len(RED) - 5, RED[5:])
    answers = (
        response(chunks, "200 OK", CHUNKED, "Content-Encoding: Identity"),
        b"HTTP/1.0 200 OK\r\n\r\n" + RED,
        b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + response(),
        response(RED + b"more", "200 OK", f"Content-Length: {len(RED)}"),
    )
    async with site(*answers) as ours:
        for n, _ in enumerate(answers):
            assert await Fetching([ours.port]).fetch(f"{NAME}:{ours.port}/{n}") == RED


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body without an end, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(10_000))
        await writer.drain()


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the beginning of a body, and wait."""
    writer.write(response()[:-1])
    await reader.read()


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await reader.read()


async def test_bytes_are_bounded_as_they_arrive_and_before() -> None:
    declared = response(b"", "200 OK", f"Content-Length: {LIMIT + 1}")
    for answer in (declared, endless):
        async with site(answer) as ours:
            fetching = Fetching([ours.port])
            with pytest.raises(TooLarge, match="the images that are fetched are over 100000 bytes"):
                await fetching.fetch(f"{NAME}:{ours.port}/")
            assert fetching.count("too_large") == 1
            assert (fetching.share.used > 0) is (answer is endless)


@pytest.mark.parametrize("answer", [slow, silent])
async def test_a_slow_server_fails_like_all_else(answer: Writes) -> None:
    async with site(answer) as ours:
        await Fetching([ours.port], seconds=0.2).fails(f"{NAME}:{ours.port}/", "timeout")


async def test_fetches_at_once_are_bounded() -> None:
    most = now = 0
    full = asyncio.Event()

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == MOST_AT_ONCE:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        now -= 1
        writer.write(response(b"a"))

    async with site(count) as ours:
        fetching = Fetching([ours.port], seconds=60)
        url = f"http://{HERE}:{ours.port}/"
        images = await asyncio.gather(*(fetching.fetch(url) for _ in range(2 * MOST_AT_ONCE)))
    assert images == [b"a"] * 2 * MOST_AT_ONCE
    assert most == MOST_AT_ONCE
