"""Unread bodies, request ids and connections of refused requests, over real sockets."""

import http.client
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from conftest import fake_backend
from starlette.types import Message
from test_classify import JPEG, Gate, parts, plain, service
from test_connections import hosting
from test_uploads import asgi, never

from service.settings import Settings

SETTINGS = Settings(model="fake", views="ten")
REFUSED = "/classify?top_k=0"
MEBIBYTE = 1024 * 1024
PATIENCE = 20.0  # seconds, for what happens at once


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a service on a fake model, ready, as `serve` listens."""
    with hosting() as hosted:
        yield hosted.port


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


def is_kept(connection: http.client.HTTPConnection) -> bool:
    """Tell whether an image that is sent over the connection is classified."""
    return post(connection, "/classify", plain("red"), {"content-type": "image/png"})[0] == 200


# Refused before the body was read.


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        (REFUSED, 1, 422),
        (REFUSED, 100_000, 422),
        (REFUSED, MEBIBYTE, 422),
        ("/nowhere", 100_000, 404),
        ("/models", 100_000, 405),
    ],
)
def test_a_small_unread_body_keeps_the_connection(
    path: str, size: int, status: int, connection: http.client.HTTPConnection
) -> None:
    for _ in range(3):
        assert post(connection, path, bytes(size)) == (status, None)
    assert is_kept(connection)


@pytest.mark.parametrize(("size", "chunked"), [(MEBIBYTE + 1, False), (1, True)])
def test_an_unread_body_of_large_or_unknown_size_closes_the_connection(
    size: int, connection: http.client.HTTPConnection, *, chunked: bool
) -> None:
    assert post(connection, REFUSED, bytes(size), chunked=chunked) == (422, "close")
    with pytest.raises((http.client.HTTPException, OSError)):
        is_kept(connection)


def test_expect_100_continue_is_refused_without_the_body(port: int) -> None:
    """The client sends no body after a refusal, so the next request's start is unknown."""
    head = (
        f"POST {REFUSED} HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n"
        "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(head.encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_is_read_keeps_the_connection_whatever_its_size(
    connection: http.client.HTTPConnection,
) -> None:
    assert post(connection, "/classify", bytes(2 * MEBIBYTE)) == (415, None)
    assert post(connection, "/classify", b"no image", chunked=True) == (415, None)
    assert is_kept(connection)


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


@pytest.mark.parametrize(
    "limits", [{"timeout_seconds": 8}, {"timeout_seconds": 60, "max_queue_bytes": 300_000}]
)
def test_without_time_or_memory_for_it_a_body_is_not_waited_for(limits: dict[str, float]) -> None:
    gate = Gate()
    slow = fake_backend(gate, seconds_per_row=0.5, sizes=[1])
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "100000"}
    with (
        service(
            lambda *_: slow, Settings.model_validate({"model": "fake", "views": "ten", **limits})
        ) as client,
        ThreadPoolExecutor() as threads,
        gate.shut(),
    ):
        threads.submit(client.post, "/classify", files=parts(plain("lime")))
        assert gate.entered.wait(PATIENCE)
        start, *_ = asgi(client, never, headers)
    assert start["status"] == 503
    assert int(dict(start["headers"])[b"retry-after"]) >= 1


def test_each_request_of_a_connection_has_its_own_request_id(
    connection: http.client.HTTPConnection,
) -> None:
    for name in ("first", "second"):
        connection.request("GET", "/livez", headers={"x-request-id": name})
        response = connection.getresponse()
        response.read()
        assert response.headers["x-request-id"] == name
