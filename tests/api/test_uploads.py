"""Request bodies to images: multipart and raw, limits and timeouts."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import multipart_form_data_conformance
import pytest
from conftest import answered, fake_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message
from test_classify import JPEG, Gate, assert_problem, parts, plain, service, top

from service.api import multipart
from service.api.form import ALIASES, Form, Upload
from service.api.upload_budget import BUSY_RETRY, Budget, Share
from service.api.uploads import BodyLimits, read
from service.errors import (
    CompressedBody,
    InvalidParameter,
    MalformedRequest,
    MissingFile,
    Overloaded,
    ServiceError,
    TooLarge,
    UnsupportedType,
)
from service.settings import Settings

BOUNDS = BodyLimits(nbytes=100_000, files=3, seconds=10)
FIELDS = ("model", "views")
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
    """Be a client that sends nothing more."""
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up() -> Message:
    """Be a client that has disconnected."""
    return {"type": "http.disconnect"}


def form(
    receive: Receive,
    kind: str | None = FORM,
    *,
    bounds: BodyLimits = BOUNDS,
    share: Share | None = None,
    **others: str | None,
) -> Form:
    named = {"content-type": kind, **{f"content-{key}": value for key, value in others.items()}}
    headers = [(key.encode(), value.encode()) for key, value in named.items() if value is not None]
    request = Request({"type": "http", "headers": headers}, receive)
    return asyncio.run(read(request, bounds, share or Share(Budget(1_000_000)), FIELDS))


def received(receive: Receive, kind: str | None = FORM, **chosen: Any) -> list[Upload]:
    return form(receive, kind, **chosen).uploads


def part(data: bytes, *headers: bytes) -> bytes:
    return b"--b\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + data + b"\r\n"


def value(name: bytes, data: bytes) -> bytes:
    return part(data, b'Content-Disposition: form-data; name="' + name + b'"')


def file(data: bytes, filename: bytes = b"a.jpg") -> bytes:
    disposition = b'Content-Disposition: form-data; name="file"; filename="' + filename + b'"'
    return part(data, disposition, b"Content-Type: image/jpeg")


END = b"--b--\r\n"


# Images, however they arrive.


def test_a_raw_body_is_one_image_without_a_name() -> None:
    assert received(sending([b"a", b"", b"b"]), "image/jpeg") == [Upload(None, b"ab")]


@pytest.mark.parametrize("kind", ["IMAGE/JPEG", " image/png ; q=1", "application/Octet-Stream"])
def test_content_types_are_read_without_case_and_parameters(kind: str) -> None:
    assert received(sending([b"a"]), kind) == [Upload(None, b"a")]


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/xml", "multipart/mixed; boundary=b", "imagejpeg"]
)
def test_other_content_types_are_refused_unread(kind: str | None) -> None:
    with pytest.raises(UnsupportedType):
        received(never, kind)


BODY = b"".join([
    file(b"\xff\xd8\r\n--\r\n-b\r\n--c image \r\n-", b"first.jpg"),
    value(b"views", b"single"),
    value(b"_charset_", b"UTF-8"),
    part(b""),
    file(b"", b""),
    part(b"second", b'content-disposition: form-data; name="file"'),
    file(bytes(range(256)), "drei üñ.png".encode()),
    END,
    b"an epilogue",
])  # fmt: skip
UPLOADS = [
    Upload("first.jpg", b"\xff\xd8\r\n--\r\n-b\r\n--c image \r\n-"),
    Upload(None, b"second"),
    Upload("drei üñ.png", bytes(range(256))),
]


@given(st.lists(st.integers(0, len(BODY)), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
@example([])
@example(list(range(len(BODY))))
def test_however_a_multipart_body_is_split_its_images_are_the_same(cuts: list[int]) -> None:
    ends = sorted(cuts)
    chunks = [BODY[a:b] for a, b in zip([0, *ends], [*ends, len(BODY)], strict=True)]
    assert received(sending(chunks)) == UPLOADS


# httpx sends %22 for a quote, as a browser does, and a backslash twice.
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="%"))


@given(st.lists(st.tuples(names, st.binary(min_size=1)), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_images_that_httpx_encodes_are_read_unchanged(images: list[tuple[str, bytes]]) -> None:
    sent = httpx2.Request("POST", "http://here", files=[("file", image) for image in images])
    uploads = received(sending([sent.read()]), sent.headers["content-type"])
    assert [upload.data for upload in uploads] == [data for _, data in images]
    assert [upload.filename or "" for upload in uploads] == [name for name, _ in images]


@pytest.mark.parametrize(
    ("parameters", "filename"),
    [
        (b'filename="caf\xc3\xa9.jpg"', "café.jpg"),
        (b'filename="caf\xe9.jpg"', "caf\ufffd.jpg"),  # not UTF-8: never a reason to refuse
        (b'filename="a\\"b.jpg"', 'a"b.jpg'),
        (b'filename="C:\\photos\\cat.jpg"', "cat.jpg"),
        (b'filename="../../etc/passwd"', "../../etc/passwd"),  # for the response, never a path
        (b'filename=""', ""),
        (b'filename="%22a%22 %0d%0A.jpg"', '"a" \r\n.jpg'),  # as HTML has browsers do it
        (b'filename="100%25 %zz.jpg"', "100%25 %zz.jpg"),
        (b"filename*=UTF-8''%e4%ba%8c%20a.jpg", "二 a.jpg"),
        (b"filename=\"plain.jpg\"; filename*=utf-8'de'%C3%BC.jpg", "ü.jpg"),
        (b"FileName*=iso-8859-1''%FC.jpg; name=file", "ü.jpg"),
        (b"filename=\"plain.jpg\"; filename*=nothing''%FC.jpg", "plain.jpg"),
        (b"filename*=nothing''%FC.jpg", None),
        (b"filename=\"; filename*=UTF-8''a\"", "; filename*=UTF-8''a"),
        (b'filename="=?UTF-8?B?w7wuanBn?="', "ü.jpg"),
        (b'filename="=?iso-8859-1?q?=FC_1.jpg?="', "ü 1.jpg"),
        (b'filename="=?nothing?q?=FC.jpg?="', "=?nothing?q?=FC.jpg?="),
        (b'filename="=?UTF-8?B?w7?="', "=?UTF-8?B?w7?="),
        (b'filename="a=?b.jpg"', "a=?b.jpg"),
    ],
)
def test_file_names_are_decoded_in_every_encoding(parameters: bytes, filename: str | None) -> None:
    body = part(b"x", b'Content-Disposition: form-data; name="file"; ' + parameters)
    assert received(sending([body, END])) == [Upload(filename, b"x")]


# Form fields, and what a browser sends for a file that was not chosen.


def test_fields_are_read_beside_the_images() -> None:
    body = value(b"views", b"single") + file(b"x") + value(b"model", "ü".encode())
    assert form(sending([body, END])).fields == {"views": "single", "model": "ü"}


UNCHOSEN = (
    part(b"", b'Content-Disposition: form-data; name="file"; filename=""'),
    part(b"", b'Content-Disposition: form-data; name="photo2"; filename=""'),
    part(b"", b"Content-Disposition: form-data"),
    value(b"file", b""),
    part(b"", b'Content-Disposition: form-data; name=""; filename=""'),
)


@pytest.mark.parametrize("name", ["file", *ALIASES])
def test_images_have_the_names_that_other_clients_give_them(name: str) -> None:
    several = value(name.encode(), b"x") + file(b"y") + value(name.encode(), b"")
    assert [upload.data for upload in received(sending([several, END]))] == [b"x", b"y"]
    with pytest.raises(TooLarge, match="over 3 images"):
        received(sending([several + file(b"z"), value(name.encode(), b"x")]))


def test_a_form_without_an_image_names_the_fields_that_it_has() -> None:
    with pytest.raises(MissingFile, match="no part 'file', only views, model; send"):
        received(sending([value(b"views", b"ten"), value(b"model", b"a"), END]))


@pytest.mark.parametrize("unchosen", UNCHOSEN)
def test_a_file_that_was_not_chosen_is_ignored(unchosen: bytes) -> None:
    for body in (unchosen + file(b"x"), file(b"x") + unchosen, file(b"x") * 3 + unchosen):
        assert {upload.data for upload in received(sending([body, END]))} == {b"x"}
    assert received(sending([unchosen, file(b""), END])) == [Upload("a.jpg", b"")]  # but named


def test_a_form_in_which_no_file_was_chosen_says_so() -> None:
    with pytest.raises(MissingFile, match="no image was chosen"):
        received(sending([file(b"", b""), END]))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (b"fil", "'fil'; did you mean file?"),
        (b"view", "'view'; did you mean views?"),
        (b"photo", "'photo'; there are file, model, views"),
        (b"<script>", "of that name; there are"),
    ],
)
def test_a_field_that_is_not_known_names_the_nearest(name: bytes, sentence: str) -> None:
    with pytest.raises(InvalidParameter, match="there is no form field") as caught:
        received(sending([value(name, b"x"), b"never parsed"]))
    assert sentence in str(caught.value)


def test_a_field_that_is_not_known_is_named_with_those_before_it() -> None:
    sent = [value(b"views", b"single"), file(b"x"), value(b"photo", b"x")]
    with pytest.raises(InvalidParameter, match="so far there were views, file, photo"):
        received(sending(sent))


# Other people's cases.

CASES = sorted(multipart_form_data_conformance.get_tests_dir().glob("*/*/test.json"))
BESIDES = {  # what no client that we know of sends, and is refused
    *("107-preamble-content", "061-lf-only-lenient", "062-mixed-endings", "085-header-folding"),
}


@pytest.mark.parametrize("case", CASES, ids=[case.parent.name for case in CASES])
def test_multipart_bodies_are_read_as_the_conformance_suite_wants(case: Path) -> None:
    expected = json.loads(case.read_text("utf-8"))["expected"]
    headers = json.loads((case.parent / "headers.json").read_text("utf-8"))
    _, options = parse_options_header(headers["content-type"])

    async def once() -> AsyncIterator[bytes]:
        yield (case.parent / "input.raw").read_bytes()

    try:
        parsed = asyncio.run(multipart.parts(once(), options.get(b"boundary"), lambda *_: None))
    except MalformedRequest:
        assert not expected["valid"] or case.parent.name in BESIDES
        return
    if not expected["valid"]:
        # A part without a name is refused later, where the names of fields are known.
        assert [part.name for part in parsed] == [None], case
        return
    assert case.parent.name not in BESIDES
    assert [(part.name, part.filename, len(part.data)) for part in parsed] == [
        (part["name"], part.get("filename_star") or part.get("filename"), part["body_size"])
        for part in expected["parts"]
    ]


# What is wrong with a body.


@pytest.mark.parametrize("coding", ["gzip", "GZIP, br", "identity, deflate", "zstd", "x"])
@pytest.mark.parametrize("kind", [FORM, "image/png"])
def test_a_compressed_body_is_refused_unread(kind: str, coding: str) -> None:
    with pytest.raises(CompressedBody, match="Content-Encoding"):
        received(never, kind, encoding=coding)


@pytest.mark.parametrize("coding", ["identity", " Identity ", "", "identity, identity"])
def test_a_body_with_content_encoding_identity_is_read(coding: str) -> None:
    assert received(sending([b"x"]), "image/png", encoding=coding) == [Upload(None, b"x")]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", MalformedRequest),
        (END, MissingFile),
        (file(b"", b"") + END, MissingFile),
        (value(b"views", b"ten") + END, MissingFile),
        (BODY[:-30], MalformedRequest),
        (file(b"x") + b"--b", MalformedRequest),
        (b"no boundary" + BODY, MalformedRequest),
        (value(b"fil", b"x") + END, InvalidParameter),
        (value(b"FILE", b"x") + END, InvalidParameter),
        (value(b"view", b"") + file(b"x") + END, InvalidParameter),
        (value(b"views", b"x" * 2049) + file(b"x") + END, InvalidParameter),
        (value(b"views", b"ten") * 2 + file(b"x") + END, InvalidParameter),
        (part(b"x") + file(b"x") + END, InvalidParameter),
        (part(b"x", b"Content-Disposition: form-data") + END, InvalidParameter),
        (part(b"x", b"X-" + b"x" * 9999 + b": y") + END, MalformedRequest),
        (file(b"x") * 4 + END, TooLarge),
        (part(b"") * 20 + END, TooLarge),
    ],
)
def test_bad_multipart_bodies_are_refused(body: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        received(sending([body]))


def test_a_body_at_every_limit_is_read() -> None:
    assert len(received(sending([part(b"") * 15, file(b"x") * 3, file(b"", b""), END]))) == 3
    data = b"x" * BOUNDS.nbytes
    assert received(sending([data]), "image/png", length=f"{len(data)}") == [Upload(None, data)]


def test_too_many_images_are_refused_before_they_have_arrived() -> None:
    with pytest.raises(TooLarge):
        received(sending([file(b"x") * 3, file(b"x")[:-3]]))


def test_a_body_with_too_large_a_content_length_is_refused_unread() -> None:
    with pytest.raises(TooLarge, match="100001 bytes; the limit is 100000"):
        received(never, length="100001")


@pytest.mark.parametrize("length", [None, "1", "-1", "many"])
def test_a_body_that_does_not_say_so_is_refused_when_it_is_too_large(length: str | None) -> None:
    share = Share(Budget(1_000_000))
    chunks = (b"x" * 1000 for _ in range(101))
    with pytest.raises(TooLarge, match="over 100000 bytes"):
        received(sending(chunks), "image/png", length=length, share=share)
    assert share.used == BOUNDS.nbytes


# The memory that all uploads share.


def test_a_share_is_given_back_after_a_failure() -> None:
    budget = Budget(100)
    with pytest.raises(MissingFile), budget.share() as share:  # noqa: PT012 - the two are the case
        share.add(100)
        raise MissingFile
    assert budget.used == 0


def test_when_the_memory_is_full_uploads_are_refused() -> None:
    budget = Budget(100)
    with budget.share() as first, budget.share() as second:
        first.add(99)
        with pytest.raises(Overloaded, match="100 bytes") as caught:
            second.add(2)
        assert caught.value.retry_after == BUSY_RETRY
        assert (second.used, budget.used) == (0, 99)
        second.add(1)


@given(st.lists(st.lists(st.integers(0, 60), max_size=5), max_size=5))
@settings(deadline=None, derandomize=True)
def test_the_memory_used_is_the_sum_of_the_shares_and_within_the_limit(
    uploads: Sequence[Sequence[int]],
) -> None:
    budget = Budget(100)
    for sizes in uploads:
        with budget.share() as first, budget.share() as second:
            for size, share in itertools.product(sizes, (first, second)):
                try:
                    share.add(size)
                except (Overloaded, TooLarge):
                    assert budget.used + size > budget.limit
                assert budget.used == first.used + second.used <= budget.limit
        assert budget.used == 0


def test_a_body_uses_memory_as_it_arrives() -> None:
    budget = Budget(7)
    with budget.share() as other, budget.share() as share:
        other.add(2)
        with pytest.raises(Overloaded):
            received(sending([b"abc", b"def"]), "image/png", share=share)
        assert share.used == 3
    with pytest.raises(TooLarge):  # a retry, as `Overloaded` advises, would be of no use
        received(sending([b"abc", b"def"]), "image/png", share=Share(Budget(5)))


# The same, through the whole service.


def asgi(
    client: TestClient, receive: Receive, headers: Mapping[str, str | bytes], **scope: Any
) -> list[Message]:
    """Call the app as a client that only ASGI can describe; give the messages sent to it."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    encoded = [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in headers.items()
    ]
    whole = {
        "type": "http", "method": "POST", "path": "/classify", "query_string": b"",
        "headers": encoded, "root_path": "", **scope,
    }  # fmt: skip
    assert client.portal is not None
    client.portal.call(client.app, whole, receive, send)
    return sent


@pytest.mark.parametrize("kind", [FORM, "image/png"])
def test_a_slow_upload_is_answered_with_408_and_the_end_of_the_connection(kind: str) -> None:
    impatient = Settings(model="fake", upload_timeout_seconds=0.02)
    with service(lambda *_: fake_backend(), impatient) as client:
        start, *bodies = asgi(client, never, {"content-type": kind, "transfer-encoding": "chunked"})
    headers = dict(start["headers"])
    assert start["status"] == 408
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert b'"code":"slow_upload"' in bodies[0]["body"]
    assert b"within 0.02 s" in bodies[0]["body"]


def test_a_client_that_disconnects_while_sending_is_counted_as_499() -> None:
    with service(lambda *_: fake_backend()) as client:
        start, *_ = asgi(client, hang_up, {"content-type": FORM})
        assert f"{answered(499)} 1.0" in client.get("/metrics").text
    assert start["status"] == 499


def test_uploads_in_flight_share_memory_and_give_it_back() -> None:
    gate = Gate()
    small = Settings(model="fake", max_inflight_body_bytes=8000)
    image = plain("red", 20, 20) + bytes(3000)
    with service(lambda *_: fake_backend(gate), small) as client:
        with ThreadPoolExecutor() as threads, gate.shut():
            accepted = threads.submit(client.post, "/classify", files=parts(image))
            assert gate.entered.wait(10)
            for kind in ({"files": parts(image)}, {"content": image, "headers": JPEG}):
                refused = client.post("/classify", **kind)
                problem = assert_problem(refused, 503, "overloaded")
                assert problem["retry_after_ms"] == 1000 * BUSY_RETRY
                assert refused.headers["retry-after"] == "1"
        assert top(accepted.result()) == "red"
        for _ in range(3):
            assert top(client.post("/classify", files=parts(image))) == "red"
