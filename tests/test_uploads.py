"""A body to its pictures: however it arrives, and however it does not."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from conftest import answered, fake_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message
from test_classify import JPEG, Gate, assert_problem, parts, plain, service, top

from service.api.uploads import BUSY_RETRY, Bounds, Budget, Share, Upload, read
from service.errors import (
    CallerGone,
    MalformedRequest,
    MissingFile,
    Overloaded,
    ServiceError,
    SlowUpload,
    TooLarge,
    UnsupportedType,
)
from service.settings import Settings

BOUNDS = Bounds(nbytes=100_000, files=3, seconds=10)
FORM = "multipart/form-data; boundary=b"

Receive = Callable[[], Awaitable[Message]]


def sending(chunks: Iterable[bytes]) -> Receive:
    """Give the ASGI messages of a body that arrives in these chunks."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    coming = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(coming)

    return receive


async def never() -> Message:
    """Be a caller that sends nothing more."""
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up() -> Message:
    """Be a caller that is gone."""
    return {"type": "http.disconnect"}


def received(
    receive: Receive,
    kind: str | None = FORM,
    *,
    bounds: Bounds = BOUNDS,
    share: Share | None = None,
    length: str | None = None,
) -> list[Upload]:
    named = {"content-type": kind, "content-length": length}
    headers = [(key.encode(), value.encode()) for key, value in named.items() if value is not None]
    request = Request({"type": "http", "headers": headers}, receive)
    return asyncio.run(read(request, bounds, share or Share(Budget(1_000_000))))


def part(data: bytes, *headers: bytes) -> bytes:
    return b"--b\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + data + b"\r\n"


def file(data: bytes, filename: bytes = b"a.jpg") -> bytes:
    disposition = b'Content-Disposition: form-data; name="file"; filename="' + filename + b'"'
    return part(data, disposition, b"Content-Type: image/jpeg")


END = b"--b--\r\n"


# Pictures, however they arrive.


def test_a_raw_body_is_one_picture_without_a_name() -> None:
    assert received(sending([b"a", b"", b"b"]), "image/jpeg") == [Upload(None, b"ab")]


@pytest.mark.parametrize("kind", ["IMAGE/JPEG", " image/png ; q=1", "application/Octet-Stream"])
def test_content_types_are_read_without_case_and_parameters(kind: str) -> None:
    assert received(sending([b"a"]), kind) == [Upload(None, b"a")]


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/json", "multipart/mixed; boundary=b", "imagejpeg"]
)
def test_other_content_types_are_refused_unread(kind: str | None) -> None:
    with pytest.raises(UnsupportedType):
        received(never, kind)


BODY = b"".join([
    file(b"\xff\xd8\r\n--\r\n-b\r\n--c picture \r\n-", b"first.jpg"),
    part(b"ignored", b'Content-Disposition: form-data; name="comment"'),
    part(b"ignored too"),
    part(b"second", b'content-disposition: form-data; name="file"'),
    file(bytes(range(256)), "drei üñ.png".encode()),
    END,
    b"an epilogue",
])  # fmt: skip
UPLOADS = [
    Upload("first.jpg", b"\xff\xd8\r\n--\r\n-b\r\n--c picture \r\n-"),
    Upload(None, b"second"),
    Upload("drei üñ.png", bytes(range(256))),
]


@given(st.lists(st.integers(0, len(BODY)), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
@example([])
@example(list(range(len(BODY))))
def test_however_a_multipart_body_is_split_its_pictures_are_the_same(cuts: list[int]) -> None:
    ends = sorted(cuts)
    chunks = [BODY[a:b] for a, b in zip([0, *ends], [*ends, len(BODY)], strict=True)]
    assert received(sending(chunks)) == UPLOADS


names = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters='\\"'))


@given(st.lists(st.tuples(names, st.binary(min_size=1)), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_a_client_encodes_is_what_comes_out(pictures: list[tuple[str, bytes]]) -> None:
    sent = httpx2.Request("POST", "http://here", files=[("file", one) for one in pictures])
    uploads = received(sending([sent.read()]), sent.headers["content-type"])
    assert [upload.data for upload in uploads] == [data for _, data in pictures]
    assert [upload.filename or "" for upload in uploads] == [name for name, _ in pictures]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b"caf\xc3\xa9.jpg", "café.jpg"),
        (b"caf\xe9.jpg", "caf\ufffd.jpg"),  # not UTF-8: shown, never a reason to refuse
        (b'a\\"b.jpg', 'a"b.jpg'),
        (b"C:\\photos\\cat.jpg", "cat.jpg"),
        (b"../../etc/passwd", "../../etc/passwd"),  # a name for the answer, never a path
        (b"", ""),
    ],
)  # fmt: skip
def test_names_of_files_are_decoded(sent: bytes, read: str) -> None:
    assert received(sending([file(b"x", sent), END])) == [Upload(read, b"x")]


# What is wrong with a body.


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", MalformedRequest),
        (END, MissingFile),
        (BODY[:-30], MalformedRequest),
        (file(b"x") + b"--b", MalformedRequest),
        (b"no boundary" + BODY, MalformedRequest),
        (file(b"x") + file(b"") + END, MalformedRequest),
        (part(b"x", b'Content-Disposition: form-data; name="files"') + END, MissingFile),
        (part(b"x", b'Content-Disposition: form-data; name="FILE"') + END, MissingFile),
        (part(b"x", b"Content-Disposition: form-data") + END, MissingFile),
        (part(b"x", b"X-" + b"x" * 9999 + b": y") + END, MalformedRequest),
        (file(b"x") * 4 + END, TooLarge),
        (part(b"x") * 20 + END, TooLarge),
    ],
)
def test_bad_multipart_bodies_are_refused(body: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        received(sending([body]))


def test_as_many_pictures_and_other_parts_as_there_may_be_are_read() -> None:
    assert len(received(sending([part(b"x") * 16, file(b"x") * 3, END]))) == 3


def test_too_many_pictures_are_refused_before_they_have_arrived() -> None:
    with pytest.raises(TooLarge):
        received(sending([file(b"x") * 3, file(b"x")[:-3]]))


def test_a_body_of_the_size_there_may_be_is_read() -> None:
    data = b"x" * BOUNDS.nbytes
    assert received(sending([data]), "image/png", length=f"{len(data)}") == [Upload(None, data)]


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    with pytest.raises(TooLarge, match="100001 bytes and may be 100000"):
        received(never, length="100001")


@pytest.mark.parametrize("length", [None, "1", "-1", "many"])
def test_a_body_that_does_not_say_so_is_refused_when_it_is_too_large(length: str | None) -> None:
    share = Share(Budget(1_000_000))
    chunks = (b"x" * 1000 for _ in range(101))
    with pytest.raises(TooLarge, match="over 100000 bytes"):
        received(sending(chunks), "image/png", length=length, share=share)
    assert share.used == BOUNDS.nbytes


@pytest.mark.parametrize("kind", [FORM, "image/png"])
def test_a_body_that_does_not_arrive_in_time_is_given_up(kind: str) -> None:
    with pytest.raises(SlowUpload, match=r"within 0\.02 s"):
        received(never, kind, bounds=Bounds(1000, 1, 0.02))


@pytest.mark.parametrize("kind", [FORM, "image/png"])
def test_a_caller_that_hangs_up_while_sending_is_gone(kind: str) -> None:
    with pytest.raises(CallerGone):
        received(hang_up, kind)


# The memory that all uploads share.


def test_a_share_is_given_back() -> None:
    budget = Budget(100)
    with budget.share() as one, budget.share() as other:
        one.add(40)
        one.add(20)
        other.add(40)
        assert (one.used, other.used, budget.used) == (60, 40, 100)
    assert budget.used == 0


def test_a_share_is_given_back_after_a_failure() -> None:
    budget = Budget(100)
    with pytest.raises(MissingFile), budget.share() as share:  # noqa: PT012 - the two are the case
        share.add(100)
        raise MissingFile
    assert budget.used == 0


def test_when_the_memory_is_full_whoever_wants_more_is_refused() -> None:
    budget = Budget(100)
    with budget.share() as one, budget.share() as other:
        one.add(99)
        with pytest.raises(Overloaded, match="100 bytes") as caught:
            other.add(2)
        assert caught.value.retry_after == BUSY_RETRY
        assert (other.used, budget.used) == (0, 99)
        other.add(1)


@given(st.lists(st.lists(st.integers(0, 60), max_size=5), max_size=5))
@settings(deadline=None, derandomize=True)
def test_the_memory_used_is_the_sum_of_the_shares_and_within_the_limit(
    wishes: Sequence[Sequence[int]],
) -> None:
    budget = Budget(100)
    for sizes in wishes:
        with budget.share() as share, budget.share() as besides:
            for size in sizes:
                for asking in (share, besides):
                    try:
                        asking.add(size)
                    except (Overloaded, TooLarge):
                        assert budget.used + size > budget.limit
                    assert budget.used == share.used + besides.used <= budget.limit
        assert budget.used == 0


def test_a_body_uses_memory_as_it_arrives() -> None:
    budget = Budget(7)
    with budget.share() as other, budget.share() as share:
        other.add(2)
        with pytest.raises(Overloaded):
            received(sending([b"abc", b"def"]), "image/png", share=share)
        assert share.used == 3


def test_a_body_that_the_memory_could_never_hold_is_too_large() -> None:
    with pytest.raises(TooLarge):  # to come again, as `Overloaded` says, would be of no use
        received(sending([b"abc", b"def"]), "image/png", share=Share(Budget(5)))


# The same, through the whole service.


def asgi(client: TestClient, receive: Receive, headers: dict[str, str]) -> list[Message]:
    """Call the app with a caller that only ASGI can describe, and give what is sent to it."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    encoded = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {
        "type": "http", "method": "POST", "path": "/classify", "query_string": b"",
        "headers": encoded, "root_path": "",
    }  # fmt: skip
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return sent


def test_a_slow_upload_is_answered_with_408_and_the_end_of_the_connection() -> None:
    impatient = Settings(model="fake", upload_seconds=0.02)
    with service(lambda _: fake_backend(), impatient) as client:
        start, *bodies = asgi(client, never, {"content-type": FORM, "transfer-encoding": "chunked"})
    headers = dict(start["headers"])
    assert start["status"] == 408
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert b'"code":"slow_upload"' in bodies[0]["body"]


def test_what_still_comes_after_a_refusal_is_read_and_forgotten() -> None:
    chunks_to_come = iter([4, 3, 2, 1, 0])

    async def receive() -> Message:
        more = next(chunks_to_come) > 0
        return {"type": "http.request", "body": bytes(1000), "more_body": more}

    small = Settings(model="fake", max_body_bytes=1024)
    with service(lambda _: fake_backend(), small) as client:
        start, *_ = asgi(client, receive, {**JPEG, "transfer-encoding": "chunked"})
    assert start["status"] == 413
    # Closing on a caller that still sends would reset the connection and lose the answer.
    assert [*chunks_to_come] == []


def test_a_caller_that_hangs_up_while_sending_is_counted_as_499() -> None:
    with service(lambda _: fake_backend()) as client:
        start, *_ = asgi(client, hang_up, {"content-type": FORM})
        assert f"{answered(499)} 1.0" in client.get("/metrics").text
    assert start["status"] == 499


def test_uploads_in_flight_share_memory_and_give_it_back() -> None:
    gate = Gate()
    small = Settings(model="fake", max_upload_bytes=4000)
    picture = plain("red", 20, 20) + bytes(3000)
    with service(lambda _: fake_backend(gate), small) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            accepted = threads.submit(client.post, "/classify", files=parts(picture))
            assert gate.entered.wait(10)
            for kind in ({"files": parts(picture)}, {"content": picture, "headers": JPEG}):
                refused = client.post("/classify", **kind)
                problem = assert_problem(refused, 503, "overloaded")
                assert problem["retry_after_ms"] == 1000 * BUSY_RETRY
                assert refused.headers["retry-after"] == "1"
        assert top(accepted.result()) == "red"
        for _ in range(3):
            assert top(client.post("/classify", files=parts(picture))) == "red"
