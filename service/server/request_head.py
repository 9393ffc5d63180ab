"""The head of an HTTP/1.1 request: limits on it, and the same without an upgrade."""

from collections.abc import Sequence

import httptools

from service.errors import HeadTooLarge

MAX_HEADERS = 100  # as many as Apache and gunicorn take

Headers = Sequence[tuple[bytes, bytes]]


def check(url: bytes, headers: Headers, received: int, limit: int) -> None:
    """Raise `HeadTooLarge` for a head of too many headers or bytes.

    `received` bytes may be more than the head, whose bytes are counted only if need be.
    """
    if len(headers) > MAX_HEADERS:
        raise HeadTooLarge(f"the request has over {MAX_HEADERS} headers; send fewer")
    if received > limit and _size(url, headers) > limit:
        raise too_large(limit)


def too_large(limit: int) -> HeadTooLarge:
    """Create the error of a head that is over `limit` bytes."""
    return HeadTooLarge(f"the request's head is over {limit} bytes; send less of it")


def _size(url: bytes, headers: Headers) -> int:
    """Count the bytes of a head, without the method and version."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """Write the head that a parser has read, without its Upgrade header."""
    start = (parser.get_method(), url, parser.get_http_version().encode())
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"".join([b"%b %b HTTP/%b\r\n" % start, *lines, b"\r\n"])
