"""Hostile and helpless connections: each ends within its bounds, and others are served meanwhile.

Most ask a server in this process, made as `serve` makes it, with a fake model behind it; the
last ones ask a real process.
"""

import asyncio
import json
import os
import re
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import attacks
import httpx2
import pytest
from attacks import HOST, LAST_LIVEZ, LIVEZ, PATIENCE, STAGES, Reply, connected, post, speak
from conftest import FakeBackend, Served, answered, fake_backend, in_thread, serving, wait_ready
from test_classify import Gate, assert_describes, plain

from service.api.tls import Certificate
from service.server import listeners
from service.server.app import create_app
from service.server.connection_limits import most_connections
from service.server.http_server import configure
from service.server.request_head import MAX_HEADERS
from service.server.uvicorn_server import Server
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")
RED = plain("red")
SHORT = 0.5  # seconds, where something is to take too long
AT_ONCE = 5.0  # seconds, on a busy machine
LIMIT = 8192  # bytes of a head


@dataclass(frozen=True)
class Hosted:
    """A server in this process."""

    port: int
    probe_port: int = 0

    def metrics(self) -> dict[str, float]:
        """Give the metrics' values, by name with labels."""
        lines = httpx2.get(f"http://{HOST}:{self.port}/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def closed(self) -> dict[str, int]:
        """Give how many connections were closed without an answer, by reason."""
        found = ((re.search(r'connections_closed_total{reason="(\w+)"}', name), value)
                 for name, value in self.metrics().items())  # fmt: skip
        return {match[1]: int(value) for match, value in found if match and value}

    def until(self, holds: Callable[[dict[str, float]], bool]) -> None:
        """Wait for what only a scrape can tell."""
        for _ in range(200):
            if holds(self.metrics()):
                return
            time.sleep(0.05)
        pytest.fail("it did not come to hold in 10 s")


@contextmanager
def hosting(
    backend: FakeBackend | None = None,
    *,
    trust: ssl.SSLContext | None = None,
    **chosen: Any,
) -> Iterator[Hosted]:
    """Serve a fake model as `serve` does, in a thread; over TLS if a client is to trust it."""
    settings = Settings(model="fake", **chosen)
    metrics = Metrics()
    app = create_app(
        settings,
        load=lambda *_: backend or fake_backend(),
        metrics=metrics,
        certificate=Certificate.read(settings),
    )
    config = configure(settings, app, metrics)
    with (
        listeners.probes(settings) as probe_listener,
        closing(socket.create_server((HOST, 0), backlog=2048)) as listener,
    ):
        # What accepted connections get too: the system takes little that no caller reads.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        server = Server(config, settings.drain_seconds, probe_listener)
        with in_thread(server, listener) as port:
            base = f"http{'s' * bool(trust)}://{HOST}:{settings.probe_port or port}"
            with httpx2.Client(base_url=base, verify=trust or True) as client:
                wait_ready(client)
            yield Hosted(port, settings.probe_port)


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    """A server that takes no large heads."""
    with hosting(max_header_bytes=LIMIT) as ours:
        yield ours


@pytest.fixture(scope="module")
def hasty() -> Iterator[Hosted]:
    """A server that loses patience soon."""
    with hosting(
        header_timeout_seconds=SHORT, upload_timeout_seconds=SHORT, send_timeout_seconds=SHORT
    ) as ours:
        yield ours


def problem(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """Check that the last that came is a problem, and is told to be the last."""
    head, _, body = reply.data.rpartition(b"\r\n\r\n")
    head = head[head.rindex(b"HTTP/1.1 ") :]
    assert head.startswith(b"HTTP/1.1 %d " % status), reply.data
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert fields[b"content-type"] == b"application/problem+json"
    assert fields[b"connection"] == b"close"
    assert fields[b"x-content-type-options"] == b"nosniff"
    described: dict[str, Any] = json.loads(body)
    assert_describes(described, status, code)
    name = fields[b"x-request-id"].decode()
    assert described["instance"] == f"urn:googlenet-service:request:{name}"
    return described


def meanwhile(port: int, attack: Awaitable[T]) -> T:
    """Attack, and see that another caller is answered as long as that lasts."""

    async def bystand(done: asyncio.Event) -> None:
        image = post(RED, "Connection: close")
        while not done.is_set():
            for ask in (LAST_LIVEZ, image):
                reply = await speak(port, [ask])
                assert reply.statuses == [200], reply.data
                assert reply.seconds < AT_ONCE
            await asyncio.sleep(0.02)

    async def both() -> T:
        done = asyncio.Event()
        standing = asyncio.create_task(bystand(done))
        try:
            return await attack
        finally:
            done.set()
            await standing

    return asyncio.run(both())


def said(hosted: Hosted, *chunks: bytes, pause: float = 0.0, shut: bool = False) -> Reply:
    return meanwhile(hosted.port, speak(hosted.port, chunks, pause=pause, shut=shut))


# Heads.


def test_a_slow_head_gets_408(hasty: Hosted) -> None:
    reply = meanwhile(hasty.port, attacks.slow_head(hasty.port, pause=0.02))
    assert problem(reply, 408, "slow_head")["detail"].endswith("within 0.5 s")
    assert SHORT <= reply.seconds < PATIENCE / 2


def test_a_silent_connection_is_closed_without_a_response(hasty: Hosted) -> None:
    before = hasty.closed().get("silent", 0)
    assert said(hasty, b"", pause=PATIENCE).data == b""
    assert said(hasty, b"\r\n\r\n", pause=PATIENCE).data == b""  # which is no head's beginning
    assert hasty.closed()["silent"] == before + 2


def test_the_timeout_of_a_later_head_starts_with_its_first_byte(hasty: Hosted) -> None:
    reply = said(hasty, LIVEZ, b"GET /livez HTTP/1.1\r\n", pause=2 * SHORT)
    assert reply.statuses == [200, 408]
    problem(reply, 408, "slow_head")
    reply = said(hasty, LIVEZ, LAST_LIVEZ, pause=2 * SHORT)
    assert reply.statuses == [200, 200]


def test_a_head_in_pieces_is_answered_if_it_is_in_time(hosted: Hosted) -> None:
    assert said(hosted, *attacks.single(LAST_LIVEZ)).statuses == [200]


@pytest.mark.parametrize(("beginning", "more"), [
    (b"GET /livez HTTP/1.1\r\nX", b"x" * 4096),
    (b"GET /livez HTTP/1.1\r\nX: ", b"y" * 4096),
    (b"GET /livez HTTP/1.1\r\n", b"X: y\r\n" * 500),
    (b"GET /", b"z" * 4096),
    (b"GET /livez?", b"q=1&" * 1000),
    (b"GET /livez HTTP/1.1\r\nX: ", b" " * 4096),
    (LIVEZ + b"GET /livez HTTP/1.1\r\nX: ", b"y" * 4096),
], ids=["name", "value", "number", "path", "query", "blanks", "of a later request"])  # fmt: skip
def test_an_endless_head_gets_431(beginning: bytes, more: bytes, hosted: Hosted) -> None:
    reply = meanwhile(hosted.port, attacks.endless(hosted.port, beginning, more))
    problem(reply, 431, "head_too_large")


def test_a_head_of_the_largest_size_is_answered_and_a_larger_one_refused(hosted: Hosted) -> None:
    around = len(b"/livez") + sum(len(n) + len(v) + 4 for n, v in (("Connection", "close"),
                                                                  ("X", "")))  # fmt: skip

    def of(size: int) -> bytes:
        more = b"y" * (size - around)
        return b"GET /livez HTTP/1.1\r\nConnection: close\r\nX: " + more + b"\r\n\r\n"

    assert said(hosted, of(LIMIT)).statuses == [200]
    assert said(hosted, of(LIMIT)[:4000], of(LIMIT)[4000:], pause=0.05).statuses == [200]
    problem(said(hosted, of(LIMIT + 1)), 431, "head_too_large")


def test_a_large_body_does_not_count_as_head(hosted: Hosted) -> None:
    reply = said(hosted, post(bytes(3 * LIMIT), "Connection: close"))
    assert reply.statuses == [415]


def test_the_number_of_headers_is_limited(hosted: Hosted) -> None:
    lines = [b"X: y\r\n"] * (MAX_HEADERS - 1)
    head = b"GET /livez HTTP/1.1\r\nConnection: close\r\n" + b"".join(lines)
    assert said(hosted, head + b"\r\n").statuses == [200]
    problem(said(hosted, head + b"X: y\r\n\r\n"), 431, "head_too_large")


@pytest.mark.parametrize("request_line", [
    b"BREW /livez HTTP/1.1",
    b"get /livez HTTP/1.1",
    b"GET livez HTTP/1.1",
    b"GET /livez HTTP/9.9",
    b"GET /livez HTCPCP/1.0",
    b"GET  HTTP/1.1",
    b"CONNECT somewhere:443 HTTP/1.1",
    b"GET / HTTP/1.1 and so on",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS's first bytes
    b"PRI * HTTP/2.0\r\n\r\nSM",
])  # fmt: skip
def test_an_invalid_request_gets_400(request_line: bytes, hosted: Hosted) -> None:
    reply = said(hosted, request_line + b"\r\nHost: here\r\n\r\n")
    problem(reply, 400, "malformed")


@pytest.mark.parametrize("target", [b"*", b"http://elsewhere/livez", b"/livez/../livez", b"//livez",
                                    b"/%00", b"/%", b"/" + b"%2e" * 100])  # fmt: skip
def test_an_odd_target_is_answered_like_any_other(target: bytes, hosted: Hosted) -> None:
    ask = b"GET " + target + b" HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert said(hosted, ask).statuses in ([200], [400], [404])


@pytest.mark.parametrize("header", [
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Content-Length: 3\r\nContent-Length: 3",
    b"Content-Length: 3, 3",
    b"Content-Length: -1",
    b"Content-Length: +3",
    b"Content-Length: 0x3",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length : 3",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding:\x0bchunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\x00",
    b"X y",
])  # fmt: skip
def test_a_body_of_ambiguous_length_is_refused_and_the_connection_closed(
    header: bytes, hosted: Hosted
) -> None:
    """What one server takes for a body, another could take for the next request."""
    ask = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\n" + header + b"\r\n\r\n"
    reply = said(hosted, ask + b"0\r\n\r\n" + LAST_LIVEZ)
    assert reply.statuses == [400]
    problem(reply, 400, "malformed")


def test_a_refusal_is_counted_and_logged(hosted: Hosted, caplog: pytest.LogCaptureFixture) -> None:
    name = 'googlenet_rejected_total{priority="interactive",reason="malformed"}'
    before = hosted.metrics()[name]
    with caplog.at_level("INFO"):
        said(hosted, b"BREW / HTTP/1.1\r\n\r\n")
    assert hosted.metrics()[name] == before + 1
    told = "connection refused: 400, this is not a valid HTTP/1.1 request: "
    assert [line for line in caplog.messages if line.startswith(told)]
    assert not [line for line in caplog.messages if "BREW" in line]


# Bodies.


def test_a_slow_body_gets_408(hasty: Hosted) -> None:
    reply = meanwhile(hasty.port, attacks.slow_body(hasty.port, pause=0.02))
    problem(reply, 408, "slow_upload")
    assert reply.seconds >= SHORT


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    b"1000\r\n" + b"x" * 4096 + b"\r\n",
    b"1\r\nx\r\n",
], ids=["long", "short"])  # fmt: skip
def test_endless_chunks_are_refused_by_time_or_size(
    more: bytes,
) -> None:
    with hosting(max_body_bytes=100_000, upload_timeout_seconds=SHORT) as ours:
        head = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked"
        reply = meanwhile(ours.port, attacks.endless(ours.port, head + b"\r\n\r\n", more))
    assert reply.statuses[0] in {408, 413}


@pytest.mark.parametrize("more", [b"x" * 4096, b"X: y\r\n" * 700], ids=["value", "number"])
def test_endless_trailers_are_refused(more: bytes, hosted: Hosted) -> None:
    head = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked"
    beginning = head + b"\r\n\r\n1\r\nx\r\n0\r\nTrailer: "
    reply = meanwhile(hosted.port, attacks.endless(hosted.port, beginning, more))
    assert reply.statuses[0] in {400, 408, 431}


def test_a_trailer_is_not_a_header(hosted: Hosted) -> None:
    """Nobody has looked at it when the request is let in."""
    ask = (
        b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\nX-Request-ID: trailing\r\n\r\n" % (len(RED), RED)
    )
    reply = said(hosted, ask + LAST_LIVEZ)
    assert reply.statuses == [200, 200]
    assert b"trailing" not in reply.data


def test_an_invalid_chunk_is_refused_and_its_request_cancelled(hosted: Hosted) -> None:
    head = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked"
    problem(said(hosted, head + b"\r\n\r\n", b"zz\r\n", pause=0.05), 400, "malformed")
    problem(said(hosted, head + b"\r\n\r\nzz\r\n"), 400, "malformed")
    hosted.until(lambda now: now["googlenet_requests_in_flight"] == 1)


def test_an_invalid_chunk_of_a_pipelined_request_is_refused_after_earlier_responses() -> None:
    gate = Gate()
    head = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked"
    with hosting(fake_backend(gate)) as ours:

        async def ask() -> Reply:
            with gate.shut():
                asking = asyncio.create_task(
                    speak(ours.port, [post(RED) + head + b"\r\n\r\nzz\r\n", LIVEZ], pause=0.05)
                )
                await asyncio.to_thread(gate.entered.wait, PATIENCE)
                await asyncio.sleep(0.2)  # for what came behind it
            return await asking

        reply = asyncio.run(ask())
    assert reply.statuses == [200, 400]
    problem(reply, 400, "malformed")


def test_a_slow_pipelined_head_is_refused_after_earlier_responses() -> None:
    gate = Gate()
    with hosting(fake_backend(gate), header_timeout_seconds=SHORT) as ours:

        async def ask() -> Reply:
            with gate.shut():
                asking = asyncio.create_task(speak(ours.port, [post(RED), b"GET"], pause=0.05))
                await asyncio.sleep(2 * SHORT)
            return await asking

        reply = asyncio.run(ask())
    assert reply.statuses == [200, 408]


def test_an_invalid_body_after_its_response_closes_the_connection(hosted: Hosted) -> None:
    """The answer came first, and the service still reads, so that it can be taken."""
    head = b"POST /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert said(hosted, head, b"zz\r\n", pause=0.05).statuses == [405]


def test_the_rest_of_an_unread_body_has_the_timeout_of_a_head(
    hasty: Hosted,
) -> None:
    head = b"POST /classify?top_k=0 HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
    reply = said(hasty, head, b"1", b"2", pause=0.05)
    assert reply.statuses == [422]
    assert reply.seconds >= SHORT
    reply = said(hasty, head, b"123456789", LAST_LIVEZ, pause=0.1)
    assert reply.statuses == [422, 200]


def test_a_length_that_is_too_small_makes_a_new_request_of_the_rest(hosted: Hosted) -> None:
    reply = said(hosted, post(b"some more", length=5))
    assert reply.statuses == [415, 400]


def test_a_too_large_length_gets_408(hasty: Hosted) -> None:
    assert said(hasty, post(RED, length=len(RED) + 1)).statuses == [408]


def test_expect_100_continue_is_answered(hosted: Hosted) -> None:
    head = post(b"", "Expect: 100-continue", "Connection: close", length=len(RED))
    reply = said(hosted, head, RED, pause=0.05)
    assert reply.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert reply.statuses == [200]


# Other protocols.


@pytest.mark.parametrize("other", ["websocket", "h2c", "TLS/1.3"])
def test_an_upgrade_is_ignored(other: str, hosted: Hosted) -> None:
    wish = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {other}", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "HTTP2-Settings: AA")  # fmt: skip
    get = "\r\n".join(["GET /livez HTTP/1.1", *wish, "", ""]).encode()
    reply = said(hosted, get + post(RED, *wish) + get + LAST_LIVEZ)
    assert reply.statuses == [200, 200, 200, 200]


def test_http_1_0_is_supported_and_its_connection_closed(hosted: Hosted) -> None:
    for keep in (b"", b"Connection: keep-alive\r\n"):
        assert said(hosted, b"GET /livez HTTP/1.0\r\n" + keep + b"\r\n").statuses == [200]


# Answers.


@pytest.mark.parametrize("at_once", [True, False])
def test_a_thousand_pipelined_requests_are_answered_in_order(
    *, at_once: bool, hosted: Hosted
) -> None:
    asks = [b"GET /livez HTTP/1.1\r\nX-Request-ID: n%d\r\n\r\n" % n for n in range(1000)]
    whole = b"".join(asks) + LAST_LIVEZ
    parts = [whole] if at_once else [whole[n : n + 1000] for n in range(0, len(whole), 1000)]
    reply = said(hosted, *parts)
    assert reply.statuses == [200] * 1001
    named = re.findall(rb"x-request-id: n(\d+)", reply.data)
    assert [int(name) for name in named] == list(range(1000))


def test_requests_are_received_while_earlier_ones_are_answered() -> None:
    gate = Gate()
    with hosting(fake_backend(gate)) as ours:

        async def ask() -> Reply:
            with gate.shut():
                many = post(RED) + LIVEZ * 1500  # more than is parsed at once
                asking = asyncio.create_task(
                    speak(ours.port, [many, *[LIVEZ] * 10, LAST_LIVEZ], pause=0.02)
                )
                await asyncio.to_thread(gate.entered.wait, PATIENCE)
                await asyncio.sleep(0.3)
            return await asking

        assert asyncio.run(ask()).statuses == [200] * 1512


def test_a_client_that_does_not_read_is_disconnected(hasty: Hosted) -> None:
    before = hasty.closed().get("stalled", 0)
    ask = b"GET /metrics HTTP/1.1\r\n\r\n"
    assert meanwhile(hasty.port, attacks.not_reading(hasty.port, ask)) < PATIENCE
    hasty.until(lambda now: now["googlenet_requests_in_flight"] == 1)
    assert hasty.closed()["stalled"] == before + 1


@pytest.mark.parametrize("number", range(400, 404))
def test_a_client_that_reads_late_but_in_time_gets_all_responses(
    number: int, hosted: Hosted
) -> None:
    """Also what has not been sent when the connection closes: by one of these numbers, much."""
    asked = b"GET /openapi.json HTTP/1.1\r\n"

    async def ask() -> int:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(sock=attacks.narrow(hosted.port))
            with closing(writer):
                writer.write((asked + b"\r\n") * number + asked + b"Connection: close\r\n\r\n")
                await asyncio.sleep(SHORT)
                return (await reader.read(-1)).count(b"HTTP/1.1 200 ")

    assert asyncio.run(ask()) == number + 1


# Leaving.


def test_a_half_closed_connection_gets_its_response(hosted: Hosted) -> None:
    assert said(hosted, LIVEZ, shut=True).statuses == [200]
    assert said(hosted, LIVEZ * 3, shut=True).statuses == [200] * 3


@pytest.mark.parametrize("cut", [10, len(LIVEZ) - 1])
def test_a_connection_half_closed_in_a_head_is_dropped(cut: int, hosted: Hosted) -> None:
    assert said(hosted, LIVEZ[:cut], shut=True).data == b""


def test_a_connection_half_closed_in_a_body_is_dropped(hosted: Hosted) -> None:
    assert said(hosted, post(RED, length=len(RED) + 1), shut=True).data == b""


def test_a_half_closed_connection_is_closed_soon() -> None:
    """It may as well have left: no forward is computed for it that has not begun."""
    gate = Gate()
    with hosting(fake_backend(gate)) as ours, gate.shut():
        assert asyncio.run(speak(ours.port, [post(RED)], shut=True)).data == b""
        ours.until(lambda now: now["googlenet_requests_in_flight"] == 1)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_disconnect_at_any_time_leaks_nothing(stage: str, *, reset: bool, hosted: Hosted) -> None:
    async def leave() -> None:
        await asyncio.gather(
            *(attacks.leave(hosted.port, stage, RED, reset=reset) for _ in range(20))
        )

    before = hosted.metrics()
    meanwhile(hosted.port, leave())
    hosted.until(lambda now: (now["googlenet_requests_in_flight"], now["googlenet_queue_rows"],
                              now["googlenet_connections"]) == (1, 0, 1))  # fmt: skip
    gone = answered(499)
    left = hosted.metrics()[gone] - before.get(gone, 0)
    expected = {"head": (20, 20), "mid-body": (20, 20), "body": (0, 20)}
    least, most = expected.get(stage, (0, 0))
    assert least <= left <= most


@pytest.mark.parametrize("behind", [b"", LIVEZ], ids=["alone", "with another behind it"])
def test_a_disconnected_client_is_removed_from_the_queue(behind: bytes) -> None:
    gate = Gate()
    with hosting(fake_backend(gate, sizes=[1])) as ours:

        async def leave() -> None:
            async with connected(ours.port) as (_, writer):
                writer.write(post(RED) + behind)
                await asyncio.to_thread(
                    ours.until, lambda now: now["googlenet_requests_in_flight"] == 3
                )
                await asyncio.sleep(0.2)  # to be decoded and queued

        async def both() -> Reply:
            with gate.shut():
                asking = asyncio.create_task(speak(ours.port, [post(RED, "Connection: close")]))
                await asyncio.to_thread(gate.entered.wait, PATIENCE)
                await leave()
                left = 'googlenet_cancelled_total{where="queue",why="cancelled"}'
                await asyncio.to_thread(ours.until, lambda now: now[left] == 1)
            return await asking

        assert asyncio.run(both()).statuses == [200]
        assert ours.metrics()["googlenet_batch_rows_sum"] == 1


# Many.


def test_the_longest_idle_connection_is_evicted_for_a_new_one() -> None:
    with hosting(max_connections=5) as ours:

        async def crowd() -> list[bool]:
            async with attacks.idle(ours.port, 4) as first, attacks.idle(ours.port, 3) as second:
                assert (await speak(ours.port, [LAST_LIVEZ])).statuses == [200]
                await asyncio.sleep(0.1)
                return [attacks.is_open(caller) for caller in (*first, *second)]

        assert asyncio.run(crowd()) == [False, False, False, True, True, True, True]
        assert ours.closed()["evicted"] >= 3


@pytest.mark.parametrize("begun", [b"", b"GET /livez HTTP/1.1\r\n"], ids=["silent", "slow"])
def test_a_connection_without_a_request_is_evicted_too(begun: bytes) -> None:
    with hosting(max_connections=5) as ours:

        async def crowd() -> Reply:
            async with attacks.idle(ours.port, 5, ask=False) as waiting:
                for caller in waiting:
                    caller.sendall(begun)
                await asyncio.sleep(0.1)  # they have arrived
                return await speak(ours.port, [LAST_LIVEZ])

        assert asyncio.run(crowd()).statuses == [200]
        assert ours.closed() == {"evicted": 1}


def test_a_new_connection_is_closed_if_all_others_are_busy() -> None:
    gate = Gate()
    with hosting(fake_backend(gate), max_connections=3) as ours:

        async def crowd() -> tuple[list[Reply], Reply]:
            with gate.shut():
                asking = [
                    asyncio.create_task(speak(ours.port, [post(RED, "Connection: close")]))
                    for _ in range(3)
                ]
                await asyncio.to_thread(gate.entered.wait, PATIENCE)
                await asyncio.sleep(0.3)
                one_more = await speak(ours.port, [LAST_LIVEZ])
            return await asyncio.gather(*asking), one_more

        answered, refused = asyncio.run(crowd())
        assert [reply.statuses for reply in answered] == [[200]] * 3
        assert refused.data == b""
        assert ours.closed() == {"full": 1}


def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    with hosting(keep_alive_seconds=1) as ours:
        reply = asyncio.run(speak(ours.port, [LIVEZ], pause=PATIENCE))
        assert (reply.statuses, reply.seconds >= 1) == ([200], True)
        assert ours.closed() == {"idle": 1}
        reply = asyncio.run(speak(ours.port, [LIVEZ, b"\r\n"], pause=0.05))
        assert (reply.statuses, reply.seconds >= 1) == ([200], True)


@pytest.mark.parametrize(
    ("asked", "files", "expected"),
    [
        (0, 20_000, 17_888),  # a backlog and some files are spared
        (100, 20_000, 100),
        (19_999, 20_000, 17_888),
        (0, 1024, 512),
        (1000, 1024, 512),
    ],
)
def test_the_limit_of_open_files_limits_connections(asked: int, files: int, expected: int) -> None:
    assert most_connections(asked, files=files, backlog=2048) == expected


def test_a_lower_limit_of_connections_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"), hosting(max_connections=10**9):
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    most = most_connections(10**9, files=soft, backlog=2048)
    assert caplog.messages == [f"connections limited to {most} by the limit of open files"]


# A real process.


@pytest.fixture(scope="module")
def real() -> Iterator[Served]:
    """A process that serves the bundled model."""
    quick = ("--max-batch", "1", "--cpu-threads", "1", "--precision", "float32")
    soon = (
        "--header-timeout-seconds",
        "2",
        "--upload-timeout-seconds",
        "2",
        "--send-timeout-seconds",
        "2",
    )
    many = ("--max-connections", "0")  # as many as files allow
    with serving("--model", "digits", "--device", "cpu", *quick, *soon, *many) as ours:
        with httpx2.Client(base_url=f"http://{HOST}:{ours.port}") as client:
            wait_ready(client)
        yield ours


def resident(served: Served) -> int:
    """Give the bytes of memory that a process has."""
    (line,) = re.findall(
        r"VmRSS:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text()
    )
    return int(line) * 1024


@pytest.mark.slow
def test_thousands_of_idle_connections_neither_lock_out_nor_slow(
    real: Served, record_property: Callable[[str, object], None]
) -> None:
    number = int(os.environ.get("TESTS_IDLE", "2000"))  # a soak asks for 10,000
    before = resident(real)

    async def crowd() -> int:
        async with attacks.idle(real.port, number) as kept:
            await asyncio.sleep(0.5)  # others are served
            assert sum(attacks.is_open(caller) for caller in kept) == number
            return resident(real)

    each = (meanwhile(real.port, crowd()) - before) / number
    record_property("bytes of each idle connection", round(each))
    assert each < 64 * 1024


@pytest.mark.slow
def test_all_attacks_at_once_leak_nothing(real: Served) -> None:
    async def attack() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(
                *(attacks.any_of_them(real.port, RED, seed=n, pause=0.001) for n in range(50))
            )

    meanwhile(real.port, attack())
    here = Hosted(real.port)
    here.until(lambda now: (now["googlenet_requests_in_flight"], now["googlenet_queue_rows"],
                            now["googlenet_connections"]) == (1, 0, 1))  # fmt: skip
    assert here.metrics()["googlenet_ready"] == 1
