"""The light HTTP client: what it sends is understood, and what comes back is never believed."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar

import httpx2
import pytest
import uvicorn
from conftest import fake_backend, in_thread, wait_ready
from test_classify import plain

from service.bench.client import Client, Reply, Target
from service.errors import BenchError
from service.server.app import create_app
from service.serving.factory import LoadBackend
from service.settings import Settings

T = TypeVar("T")


@contextmanager
def live(load: LoadBackend = lambda *_: fake_backend()) -> Iterator[str]:
    """Serve the real application over real sockets, in a thread; gives its address."""
    config = uvicorn.Config(create_app(Settings(), load=load), log_config=None)
    server = uvicorn.Server(config)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1000) as listener,
        in_thread(server, listener) as port,
    ):
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url) as client:
            wait_ready(client)
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the real application with a fake model."""
    with live() as url:
        yield url


class Script:
    """A server that answers each connection's requests with bytes of our own, then hangs up."""

    def __init__(self, *connections: Iterable[bytes]) -> None:
        self.opened = 0
        self.closed = asyncio.Event()  # by the server
        self._connections = connections
        self._tasks: list[asyncio.Task[Any]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        task = asyncio.current_task()
        assert task
        self._tasks.append(task)
        answers = self._connections[self.opened]
        self.opened += 1
        try:
            for answer in answers:
                await reader.readuntil(b"\r\n\r\n")  # a GET has no body
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass  # the client hung up first
        finally:
            writer.close()
            self.closed.set()

    async def ended(self) -> None:
        """Wait for all connections to be done with."""
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def scripted(*connections: Iterable[bytes]) -> AsyncIterator[tuple[Client, Script]]:
    """Give a client of a `Script`."""
    script = Script(*connections)
    async with await asyncio.start_server(script, "127.0.0.1", 0) as server:
        with closing(Client(Target(*server.sockets[0].getsockname()))) as client:
            yield client, script
        await script.ended()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run, but not for ever."""
    return asyncio.run(asyncio.wait_for(work, 60))


def ask(url: str, *requests: bytes) -> list[Reply]:
    async def main() -> list[Reply]:
        with closing(Client(Target.parse(url))) as client:
            return [await client.ask(request) for request in requests]

    return run(main())


GET = Target("h", 1).get("/")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


# Addresses.


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://localhost:8000", Target("localhost", 8000)),
        ("http://localhost", Target("localhost", 80)),
        ("http://10.0.0.1:8000/", Target("10.0.0.1", 8000)),
        ("http://h:1/models/a/", Target("h", 1, "/models/a")),
        ("http://[::1]:8000", Target("::1", 8000)),
    ],
)
def test_an_address_is_a_host_a_port_and_perhaps_a_path(url: str, target: Target) -> None:
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "localhost",
            "localhost:8000",
            "https://localhost",
            "ftp://h",
            "http://",
            "http://:1",
        ),
        *("http://h:port", "http://h:99999", "http://[::1", "http://a..b", "http://" + 64 * "x"),
    ],
)
def test_what_is_no_address_is_told_in_a_sentence(url: str) -> None:
    with pytest.raises(BenchError) as error:
        Target.parse(url)
    assert str(error.value).startswith(repr(url))


def test_the_path_of_an_address_comes_before_that_of_a_request() -> None:
    assert Target("h", 1, "/a").get("/b").startswith(b"GET /a/b HTTP/1.1\r\nHost: h:1\r\n")


# Requests, as the real application understands them.


def test_a_image_is_understood_as_a_form_and_as_the_body(url: str) -> None:
    target = Target.parse(url)
    kind = {"Content-Type": "image/png"}
    replies = ask(
        url,
        target.post_form("/classify?views=single", plain("red"), {}),
        target.post("/classify?views=single", plain("blue"), kind),
    )
    assert [reply.status for reply in replies] == [200, 200]
    tops = [json.loads(reply.body)["predictions"][0]["label"] for reply in replies]
    assert tops == ["red", "blue"]
    assert replies[0].headers["content-type"] == "application/json"


def test_headers_are_sent_with_a_form(url: str) -> None:
    target = Target.parse(url)
    [reply] = ask(url, target.post_form("/classify", plain("red"), {"X-Timeout-Ms": "soon"}))
    assert reply.status == 422
    assert "x-timeout-ms" in json.loads(reply.body)["detail"]


def test_a_get_has_no_body(url: str) -> None:
    [reply] = ask(url, Target.parse(url).get("/readyz"))
    assert (reply.status, reply.body) == (200, b"ok\n")


# Connections.


def test_a_connection_is_kept_and_used_again() -> None:
    async def main() -> None:
        async with scripted(itertools.repeat(ANSWER)) as (client, script):
            replies = [await client.ask(GET) for _ in range(5)]
            assert [(reply.status, reply.body) for reply in replies] == [(200, b"hi")] * 5
            assert script.opened == 1

    run(main())


def test_as_many_connections_are_opened_as_are_needed_at_a_time() -> None:
    async def main() -> None:
        async with scripted(*(itertools.repeat(ANSWER) for _ in range(3))) as (client, script):
            for _ in range(4):
                replies = await asyncio.gather(*(client.ask(GET) for _ in range(3)))
                assert [reply.status for reply in replies] == [200] * 3
            assert script.opened == 3

    run(main())


def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def main() -> None:
        async with scripted([ANSWER], [ANSWER]) as (client, script):
            assert (await client.ask(GET)).status == 200
            await script.closed.wait()
            await asyncio.sleep(0.01)  # the loop has to look at its sockets once
            assert (await client.ask(GET)).status == 200
            assert script.opened == 2

    run(main())


def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    last = b"HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    async def main() -> None:
        # The server would answer it a second time, if it were asked.
        async with scripted(itertools.repeat(last), [ANSWER]) as (client, script):
            assert [(await client.ask(GET)).status for _ in range(2)] == [503, 200]
            assert script.opened == 2

    run(main())


def test_closing_hangs_up() -> None:
    async def main() -> None:
        async with scripted(itertools.repeat(ANSWER)) as (client, script):
            await client.ask(GET)
            assert not script.closed.is_set()
            client.close()
            await script.closed.wait()

    run(main())


# Answers.


def test_an_answer_may_come_in_pieces() -> None:
    pieces = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Two: Words here\r\n\r\n",
        *(b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"),
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in b"".join(pieces):
            writer.write(bytes([piece]))
            await asyncio.sleep(0)
        writer.close()

    async def main() -> Reply:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            with closing(Client(Target(*server.sockets[0].getsockname()))) as client:
                return await client.ask(GET)

    reply = run(main())
    assert (reply.status, reply.body, reply.headers["x-two"]) == (200, b"abcde", "Words here")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"220 mail.example.org ESMTP\r\n",
        bytes(range(256)),
        b"HTTP/1.1 200",
        ANSWER[:-1],
        ANSWER.replace(b"2\r\n", b"two\r\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nabcde\r\n",
    ],
)
def test_a_broken_answer_has_status_0_and_its_connection_is_given_up(answer: bytes) -> None:
    async def main() -> list[int]:
        async with scripted([answer], [ANSWER]) as (client, _):
            return [(await client.ask(GET)).status for _ in range(2)]

    assert run(main()) == [0, 200]


def test_garbage_on_an_open_connection_is_not_waited_for() -> None:
    async def main() -> list[int]:
        garbage = itertools.chain([b"what?"], itertools.repeat(b""))
        async with scripted(garbage, [ANSWER]) as (client, _):
            return [(await client.ask(GET)).status for _ in range(2)]

    assert run(main()) == [0, 200]


SILENT = itertools.repeat(b"")  # reads on, and answers nothing


def test_a_service_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bench.client._TIMEOUT", 0.1)

    async def main() -> list[int]:
        async with scripted(SILENT, [ANSWER]) as (client, _):
            return [(await client.ask(GET)).status for _ in range(2)]

    assert run(main()) == [0, 200]


def test_a_caller_that_gives_up_takes_its_connection_along() -> None:
    async def main() -> None:
        async with scripted(SILENT, [ANSWER]) as (client, script):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.ask(GET), 0.1)
            await script.closed.wait()
            assert (await client.ask(GET)).status == 200

    run(main())


def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    other = ANSWER.replace(b"200 OK", b"404 No").replace(b"hi", b"ho")

    async def main() -> list[tuple[int, bytes]]:
        async with scripted([ANSWER + other, ANSWER]) as (client, _):
            replies = [await client.ask(GET) for _ in range(2)]
            return [(reply.status, reply.body) for reply in replies]

    assert run(main()) == [(200, b"hi"), (200, b"hi")]


def test_where_nobody_listens_the_status_is_0() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        host, port = taken.getsockname()
        assert [reply.status for reply in ask(f"http://{host}:{port}", GET, GET)] == [0, 0]
