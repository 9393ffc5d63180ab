"""Unread bodies, request ids and connections of refused requests, over real sockets."""

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import httpx2
import pytest
import uvicorn
from conftest import fake_backend, in_thread, wait_ready
from starlette.testclient import TestClient
from starlette.types import Message
from test_classify import JPEG, Gate, assert_problem, parts, plain, service
from test_uploads import asgi, never

from service.server.app import create_app
from service.settings import Settings

SETTINGS = Settings(model="fake")
REFUSED = "/classify?top_k=0"
MEBIBYTE = 1024 * 1024
PATIENCE = 20.0  # seconds, for what happens at once


@contextmanager
def listening() -> Iterator[int]:
    """Serve a fake model on a port of this machine, as `serve` does."""
    app = create_app(SETTINGS, load=lambda *_: fake_backend())
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    )
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        in_thread(server, listener) as port,
    ):
        yield port


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a service that is ready."""
    with listening() as number:
        with httpx2.Client(base_url=f"http://127.0.0.1:{number}") as client:
            wait_ready(client)
        yield number


@pytest.fixture
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept for as long as the service keeps it."""
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    kept.auto_open = 0  # never a second one
    kept.connect()
    with closing(kept):
        yield kept


def post(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes,
    headers: Mapping[str, str] = JPEG,
    *,
    chunked: bool = False,
) -> tuple[int, str | None]:
    """Send a body and give the answer's status and what it says of the connection."""
    content = iter([body]) if chunked else body
    named = {**headers, **({"transfer-encoding": "chunked"} if chunked else {})}
    connection.request("POST", path, content, named, encode_chunked=chunked)
    response = connection.getresponse()
    response.read()
    return response.status, response.headers["connection"]


def is_answered(connection: http.client.HTTPConnection) -> bool:
    """Tell whether an image that is sent over the connection is classified."""
    return post(connection, "/classify", plain("red"), {"content-type": "image/png"})[0] == 200


# Refused before the body was read.


@pytest.mark.parametrize("size", [1, 100_000, MEBIBYTE])
def test_a_small_unread_body_keeps_the_connection(
    size: int, connection: http.client.HTTPConnection
) -> None:
    for _ in range(3):
        assert post(connection, REFUSED, bytes(size)) == (422, None)
    assert is_answered(connection)


@pytest.mark.parametrize("path", ["/nowhere", "/models"])
def test_where_no_body_is_wanted_a_small_one_does_no_harm(
    path: str, connection: http.client.HTTPConnection
) -> None:
    status, kept = post(connection, path, bytes(100_000))
    assert (status, kept) in {(404, None), (405, None)}
    assert is_answered(connection)


def test_a_large_unread_body_closes_the_connection(
    connection: http.client.HTTPConnection,
) -> None:
    assert post(connection, REFUSED, bytes(MEBIBYTE + 1)) == (422, "close")
    with pytest.raises((http.client.HTTPException, OSError)):
        is_answered(connection)


def test_an_unread_body_of_unknown_size_closes_the_connection(
    connection: http.client.HTTPConnection,
) -> None:
    assert post(connection, REFUSED, b"x", chunked=True) == (422, "close")
    with pytest.raises((http.client.HTTPException, OSError)):
        is_answered(connection)


def test_expect_100_continue_is_refused_without_the_body(port: int) -> None:
    """The client sends no body after a refusal, so the next request's start is unknown."""
    head = (
        f"POST {REFUSED} HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n"
        "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as caller:
        caller.sendall(head.encode())
        answer = b"".join(iter(lambda: caller.recv(65536), b""))  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_is_read_keeps_its_connection_whatever_its_size(
    connection: http.client.HTTPConnection,
) -> None:
    assert post(connection, "/classify", bytes(2 * MEBIBYTE)) == (415, None)
    assert post(connection, "/classify", b"no image", chunked=True) == (415, None)
    assert is_answered(connection)


@pytest.mark.parametrize("declared", ["1048577", "", "soon", "-1", "१"])
def test_a_body_that_may_be_long_ends_the_connection(declared: str) -> None:
    """However odd what it declares; a server in front may let anything through."""
    coming = iter([True, True, False])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x", "more_body": next(coming)}

    headers = {"content-length": declared, "content-type": "text/plain"}
    with service(lambda *_: fake_backend(), SETTINGS) as client:
        start, *_ = asgi(client, receive, headers)
    assert start["status"] == 415
    assert dict(start["headers"])[b"connection"] == b"close"
    assert [*coming] == []  # what still came was read and forgotten


# Refused for want of time, before any of the body was read.


def busy(client: TestClient, gate: Gate) -> Message:
    """Fill the service's time and ask once more, with a body that never comes."""
    form = {"content-type": "multipart/form-data; boundary=b", "content-length": "100000"}
    with gate.shut():
        thread = threading.Thread(
            target=client.post, args=("/classify",), kwargs={"files": parts(plain("lime"))}
        )
        thread.start()
        assert gate.entered.wait(PATIENCE)
        start, *_ = asgi(client, never, form)
    thread.join()
    return start


def test_when_there_is_no_time_for_it_a_body_is_not_waited_for() -> None:
    gate = Gate()
    patient = Settings(model="fake", timeout_seconds=8)
    slow = fake_backend(gate, seconds_per_row=0.5, sizes=[1])
    with service(lambda *_: slow, patient) as client:
        start = busy(client, gate)
    assert start["status"] == 503
    assert int(dict(start["headers"])[b"retry-after"]) >= 1


def test_when_there_is_no_memory_for_it_a_body_is_not_waited_for() -> None:
    gate = Gate()
    small = Settings(model="fake", max_queue_bytes=300_000)
    with service(lambda *_: fake_backend(gate), small) as client:
        assert busy(client, gate)["status"] == 503


def test_a_timeout_that_no_image_can_meet_is_refused_before_the_body() -> None:
    with service(lambda *_: fake_backend(seconds_per_row=2)) as client:
        start, *_ = asgi(client, never, {"content-type": "image/png"})
    assert start["status"] == 504


def test_each_request_is_checked_for_the_time_it_has_and_the_views_it_wants() -> None:
    with service(lambda *_: fake_backend(seconds_per_row=0.1)) as client:
        answers = [
            client.post("/classify", params={"views": views}, files=parts(plain("red")),
                        headers={"x-timeout-ms": "500"})
            for views in ("single", "ten")
        ]  # fmt: skip
    assert answers[0].status_code == 200
    assert_problem(answers[1], 504, "deadline_exceeded")


def test_a_clients_request_id_is_returned(
    connection: http.client.HTTPConnection,
) -> None:
    names = []
    for name in ("first", "second"):
        connection.request("GET", "/livez", headers={"x-request-id": name})
        response = connection.getresponse()
        response.read()
        names.append(response.headers["x-request-id"])
    assert names == ["first", "second"]
