"""The Python client, blocking and asyncio in every test: results, errors and retries."""

import asyncio
import hashlib
import io
import itertools
import json
import operator
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import (
    FakeBackend,
    Served,
    colour_or_map,
    fake_backend,
)
from test_classify import Gate, parts, plain
from test_connections import hosting

from service import client
from service.client import (
    AsyncClient,
    Client,
    ClientError,
    Failed,
    Model,
    Ranking,
    Rejected,
    TimedOut,
    Unauthorized,
    Unavailable,
    Unreachable,
    Unreadable,
    bulk,
    errors,
    retries,
    transport,
)
from service.client.results import Box, Embedding, LabelSet, Member
from service.client.retries import Failures
from service.models.manifest import LabelSets

HOST = "127.0.0.1"
TLS = b"\x16"  # how it begins
LABELS = {"red": "red", "lime": "green", "blue": "blue"}  # of colours, by the fake model
ONE = {"model": "fake", "version": "1", "views": "single", "view_count": 1, "predictions": [
    {"label": "red", "wnid": None, "index": 0, "probability": 1.0, "more": "to come"}
]}  # fmt: skip


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Make one call with either client; what it gives one by one is a list."""

    def blocking(url: str, call: str, *what: Any, about: Any = None, **how: Any) -> Any:
        with Client(url, **(about or {})) as client:
            result = getattr(client, call)(*what, **how)
            return [*result] if isinstance(result, Iterator) else result

    def on_a_loop(url: str, call: str, *what: Any, about: Any = None, **how: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(url, **(about or {})) as client:
                result = getattr(client, call)(*what, **how)
                if isinstance(result, AsyncIterator):
                    return [one async for one in result]
                return await result

        return asyncio.run(main())

    return blocking if request.param == "blocking" else on_a_loop


@contextmanager
def live(backend: FakeBackend | None = None, **chosen: Any) -> Iterator[str]:
    """Serve the real application with a fake model in a thread; gives its URL."""
    backend = backend or fake_backend(colour_or_map, explains=True)
    with hosting(backend, views="single", **chosen) as hosted:
        yield f"http://{HOST}:{hosted.port}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service that takes three images per request."""
    with live(max_images_per_request=3, max_body_bytes=4096) as url:
        yield url


Say = bytes | Callable[[socket.socket], None]


def whole(connection: socket.socket) -> bytes:
    """Read a request to its end; unread bytes would reset the connection."""
    request = b""
    while b"\r\n\r\n" not in request and not request.startswith(TLS):
        if not (part := connection.recv(65536)):
            return request
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while len(body) < (int(length[1]) if length else 0):
        body += connection.recv(65536)
    return head


def answering(listener: socket.socket, says: Iterable[Say], asked: list[bytes]) -> None:
    """Send a response to each connection in turn, and close it."""
    for say in says:
        with suppress(OSError):  # the client has disconnected, or the listener is closed
            connection, _ = listener.accept()
            with connection:
                asked.append(whole(connection))
                if callable(say):
                    say(connection)
                else:
                    connection.sendall(say)


@contextmanager
def misbehaving(*says: Say) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends the given responses; gives its URL and the requests' heads."""
    asked: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=answering, args=[listener, says, asked])
        thread.start()
        yield f"http://{HOST}:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        thread.join()


def answered(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


GOOD = answered(json.dumps(ONE).encode())


# Results.


def test_every_kind_of_image_input_is_classified(ask: Ask, url: str, tmp_path: Path) -> None:
    data = plain("lime")
    file = tmp_path / "lime.png"
    file.write_bytes(data)
    with file.open("rb") as opened:
        held = [data, bytearray(data), memoryview(data), file, str(file), opened, io.BytesIO(data)]
        rankings = [ask(url, "classify", image) for image in held]
    assert len({*rankings}) == 1
    ranking: Ranking = rankings[0]
    assert (ranking.model, ranking.version, ranking.views) == ("fake0", "1", "single")
    assert ranking.notice is None
    assert ranking.best.label == "green"
    assert [prediction.index for prediction in ranking.predictions] == [1, 0, 2]
    assert ranking.best.wnid is None
    assert ranking.best.probability == pytest.approx(1)


def test_options_are_sent(ask: Ask, url: str) -> None:
    ranking = ask(url + "/", "classify", plain("red"), views="ten", top_k=1, model=None)
    assert (ranking.views, len(ranking.predictions)) == ("ten", 1)


def test_a_label_set_is_a_value(ask: Ask) -> None:
    backend = fake_backend()
    (member,) = backend.ensemble.members
    sets = LabelSets(levels=(0.8, 0.9), thresholds={"single": (0.9, 0.2)})
    backend.ensemble = replace(backend.ensemble, members=(replace(member, label_sets=sets),))
    with live(backend) as url:
        ranking = ask(url, "classify", plain("orange"), coverage=0.85)
        assert ranking.label_set == LabelSet(0.9, 2, ranking.predictions[:2], None)
        (empty,) = ask(url, "classify_all", [plain("orange")], coverage=0.8)
        assert empty.label_set == LabelSet(0.8, 0, (), "empty")
        assert ask(url, "classify", plain("orange")).label_set is None
        with pytest.raises(Rejected, match="too few images") as caught:
            ask(url, "classify", plain("orange"), coverage=0.99)
    assert (caught.value.code, caught.value.status) == ("not_calibrated", 409)


@pytest.mark.parametrize("call", ["classify_all", "classify_stream"])
def test_many_images_are_sent_in_smaller_requests_after_413(
    call: str, ask: Ask, url: str, tmp_path: Path
) -> None:
    colours = [*itertools.islice(itertools.cycle(LABELS), 40)]
    images: list[Any] = [plain(colour) for colour in colours]
    images[5] = images[5][:-30]
    images[7] = tmp_path / "gone.png"
    images[20] = bytes(5000)  # more than a body may have
    results = ask(url, call, iter(images), top_k=1)
    if call == "classify_stream":  # in any order
        places, results = zip(*sorted(results, key=operator.itemgetter(0)), strict=True)
        assert [*places] == [*range(40)]
    assert len(results) == 40
    bad = {n: result for n, result in enumerate(results) if not isinstance(result, Ranking)}
    assert {n: (type(error), error.code) for n, error in bad.items()} == {
        5: (Rejected, "unreadable_image"),
        7: (Unreadable, "unreadable_file"),
        20: (Rejected, "too_large"),
    }
    good = {n: result.best.label for n, result in enumerate(results) if n not in bad}
    assert good == {n: LABELS[colours[n]] for n in good}
    assert len(good) == 37


def test_large_images_are_split_into_several_requests(ask: Ask) -> None:
    red = plain("red")
    large = red + bytes(bulk.MAX_BYTES // 2)  # bytes after a PNG's end are ignored
    with live(max_body_bytes=bulk.MAX_BYTES + 2**20) as url:
        results = ask(url, "classify_all", [large, red, large, large])
    assert [ranking.best.label for ranking in results] == ["red"] * 4


def test_no_images_send_no_request(ask: Ask) -> None:
    assert ask("http://nowhere.invalid", "classify_all", []) == []


def test_models_are_listed(ask: Ask, url: str) -> None:
    models = ask(url, "models")
    assert models.default == "fake"
    views = ("single", "ten", "paper", "dense", "adaptive", "adaptive:paper", "auto")
    member = Member("fake0", "1", "fake", "0" * 64)
    assert models.models == (
        Model("fake", "1", "cpu", "float32", 3, views, "single", None,
              explains=True, members=(member,)),
    )  # fmt: skip


def test_an_explanation_as_numbers_and_as_png(ask: Ask, url: str) -> None:
    explanation = ask(url, "explain", plain("blue"), label="red")
    assert (explanation.label, explanation.index, explanation.views) == ("red", 0, "single")
    (map_,) = explanation.maps
    assert map_.grid == ((1.0, 1.0), (1.0, 1.0))
    assert (map_.logit, explanation.bias) == (2.0, 1.0)
    assert map_.box == explanation.box == Box(0.0, 0.0, 1.0, 1.0)
    other = ask(url, "explain", plain("blue"), views="ten")
    assert (other.label, len(other.maps), other.box) == ("blue", 10, None)
    assert ask(url, "heat_map", plain("blue"), label=0).startswith(b"\x89PNG")


def test_features(ask: Ask, url: str) -> None:
    found = ask(url, "embed", plain("blue"), views="ten", normalise=True, background=True)
    assert found == Embedding("fake0", "1", "ten", (0.0, 0.0, 1.0))
    assert ask(url, "embed", plain("blue")).features == (0.0, 0.0, 255.0)


def test_label_options_are_sent(ask: Ask, url: str) -> None:
    ranking = ask(url, "classify", plain("yellow"), labels=["blue", 0], threshold=0.1)
    assert [prediction.label for prediction in ranking.predictions] == ["red"]
    assert ranking.best.probability == pytest.approx(0.5)
    options = {"labels": "blue,0", "renormalise": True, "top_k": 1}
    assert ask(url, "classify", plain("yellow"), **options).best.probability == pytest.approx(1)
    with pytest.raises(Rejected, match="has no broader labels") as raised:
        ask(url, "classify", plain("red"), specificity=0.5)
    assert raised.value.code == "no_broader_labels"


def test_a_real_photo_has_broader_labels(ask: Ask, served: Served, beagle: bytes) -> None:
    url = f"http://{HOST}:{served.port}"
    ranking = ask(url, "classify", beagle, views="single", specificity=0.9)
    assert ranking.best.broader[:3] == ("hound", "hunting dog", "dog")
    assert (ranking.specific.label, ranking.specific.index) == ("hound", None)
    assert ranking.specific.broader == ranking.best.broader[1:]
    assert 0.9 <= ranking.specific.probability <= 1


def test_a_real_photo_has_the_same_result_as_over_http(
    ask: Ask, served: Served, beagle: bytes
) -> None:
    url = f"http://{HOST}:{served.port}"
    answer = httpx2.post(f"{url}/classify?views=single", files=parts(beagle), timeout=60).json()
    ranking = ask(url, "classify", beagle, views="single")
    assert ranking.best.label == "beagle"
    expected = [(p["label"], p["wnid"], p["index"]) for p in answer["predictions"]]
    assert [(p.label, p.wnid, p.index) for p in ranking.predictions] == expected
    for ours, theirs in zip(ranking.predictions, answer["predictions"], strict=True):
        assert ours.probability == pytest.approx(theirs["probability"], abs=1e-4)
    good, bad = ask(url, "classify_all", [beagle, b"none"], views="single")
    assert good.best.label == "beagle"
    assert bad.status == 415


def test_a_stream_gives_a_result_before_the_others_are_there() -> None:
    gate = Gate()
    with live(fake_backend(gate)) as url, Client(url) as client, gate.shut():
        results = client.classify_stream([plain("red"), b"none", plain("blue")])
        place, error = next(results)
        assert isinstance(error, Rejected)
        assert (place, error.code) == (1, "unsupported_type")
        gate.open()
        rest = sorted((place, one.best.label) for place, one in results if isinstance(one, Ranking))
    assert rest == [(0, "red"), (2, "blue")]


def test_real_photos_have_the_same_rankings_in_a_stream(
    ask: Ask, served: Served, shared: Path
) -> None:
    url = f"http://{HOST}:{served.port}"
    photos = [shared / f"photos/flickr/{name}.jpg" for name in ("beagle", "tractor", "koala")]
    together = ask(url, "classify_all", photos, views="single")
    streamed = dict(ask(url, "classify_stream", photos, views="single"))
    for place, ranking in enumerate(together):
        assert [one.index for one in streamed[place].predictions] == [
            one.index for one in ranking.predictions
        ]
        for ours, theirs in zip(streamed[place].predictions, ranking.predictions, strict=True):
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)


# Errors.


@pytest.mark.parametrize("end", [b"", b"none\n", b'{"index": 0}\n', b'{"index": 9}\n'])
def test_images_without_a_line_have_the_error_that_ended_the_stream(ask: Ask, end: bytes) -> None:
    body = json.dumps({"index": 1, **ONE}).encode() + b"\n" + end
    with misbehaving(answered(body)) as (url, asked):
        results = ask(url, "classify_stream", [plain("red")] * 3)
    assert [place for place, _ in results] == [1, 0, 2]
    assert isinstance(results[0][1], Ranking)
    assert {type(error) for _, error in results[1:]} == {Failed if end else Unreachable}
    assert len(asked) == 1


def test_a_stream_that_is_refused_is_retried(ask: Ask) -> None:
    problem = json.dumps({"detail": "busy", "code": "overloaded", "retry_after_ms": 1}).encode()
    good = answered(json.dumps({"index": 0, **ONE}).encode() + b"\n")
    with misbehaving(answered(problem, "503 Busy"), good) as (url, asked):
        ((place, ranking),) = ask(url, "classify_stream", [plain("red")])
    assert (place, ranking.best.label, len(asked)) == (0, "red", 2)
    assert b"accept: application/x-ndjson" in asked[0].lower()


def test_a_stream_that_stops_times_out(ask: Ask) -> None:
    body = json.dumps({"index": 1, **ONE}).encode() + b"\n"

    def stop(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + body)
        connection.recv(1)  # until the client has given up

    with misbehaving(stop) as (url, _):
        results = ask(url, "classify_stream", [plain("red")] * 2, timeout=0.5)
    assert [place for place, _ in results] == [1, 0]
    assert isinstance(results[1][1], TimedOut)


def test_a_broken_image_is_rejected(ask: Ask, url: str) -> None:
    with pytest.raises(Rejected, match="the PNG image is broken or cut short") as raised:
        ask(url, "classify", plain("red")[:-30])
    error = raised.value
    assert (error.status, error.code, error.retry_after) == (422, "unreadable_image", None)
    assert error.detail == str(error)


def test_an_unreadable_file_raises(ask: Ask, url: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"gone\.png"):
        ask(url, "classify", tmp_path / "gone.png")
    with pytest.raises(Unreadable, match="in binary mode"):
        ask(url, "classify", io.StringIO("text"))


def test_a_wrong_key_is_unauthorized_and_the_right_one_accepted(ask: Ask) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    with live(api_key_hashes=f"web:{digest}") as url:
        for about in ({"key": "wrong"}, {}):
            with pytest.raises(Unauthorized, match="send your API key") as raised:
                ask(url, "classify", plain("red"), about=about)
            assert (raised.value.status, raised.value.code) == (401, "unauthorized")
        assert ask(url, "classify", plain("red"), about={"key": "key"}).best.label == "red"


def test_classify_all_stops_sending_after_unauthorized(ask: Ask) -> None:
    body = json.dumps({"detail": "no", "code": "unauthorized"}).encode()
    with misbehaving(answered(body, "401 Unauthorized")) as (url, asked):
        results = ask(url, "classify_all", [plain("red")] * 40)
    assert [type(error) for error in results] == [Unauthorized] * 40
    assert len(asked) == 1


def test_a_failed_request_does_not_fail_the_others(ask: Ask) -> None:
    result = {"view_count": 1, "predictions": ONE["predictions"]}
    several = answered(json.dumps({**ONE, "results": [result] * 16}).encode())
    with misbehaving(answered(b"", "500 Oh"), several) as (url, _):
        results = ask(url, "classify_all", [plain("red")] * 32)
    assert [type(result) for result in results] == [Failed] * 16 + [Ranking] * 16


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        *((body, "200 OK", ("invalid_answer", 200)) for body in (
            b"none", b"[]", b"{}", b"null", b"\xff",
            b'{"model": "a", "version": "1", "views": "b", "predictions": [1]}',
        )),
        *((body, "502 Bad Gateway", ("invalid_answer", 502)) for body in (
            b"<html>", b"[1]", b'{"detail": 1, "code": "a"}',
        )),
    ],
)  # fmt: skip
def test_an_invalid_response_fails(
    ask: Ask, body: bytes, status: str, error: tuple[str, int]
) -> None:
    with misbehaving(answered(body, status)) as (url, _), pytest.raises(Failed) as raised:
        ask(url, "classify", b"image")
    assert (raised.value.code, raised.value.status) == error
    if raised.value.status == 502:
        assert raised.value.detail == "the response has status 502 and no error message"


def test_a_response_with_fewer_results_than_images_fails(ask: Ask) -> None:
    body = json.dumps({**ONE, "results": []}).encode()
    with misbehaving(answered(body)) as (url, _):
        errors = ask(url, "classify_all", [b"1", b"2"])
    assert [error.code for error in errors] == ["invalid_answer"] * 2


# Retries and timeouts.


class RetryLog:
    """Records the retries of a client; calls `on_first` at the first."""

    def __init__(self, on_first: Callable[[], object] = lambda: None) -> None:
        self.errors: list[ClientError] = []
        self.seconds: list[float] = []
        self._on_first = on_first

    def __call__(self, error: ClientError, seconds: float) -> None:
        """Record a retry."""
        if not self.errors:
            self._on_first()
        self.errors.append(error)
        self.seconds.append(seconds)


def test_overload_is_retried_after_the_given_delay(ask: Ask) -> None:
    """The queue's memory has room for one image, which is blocked."""
    gate = Gate()
    backend = fake_backend(gate)
    with live(backend, max_queue_bytes=200_000) as url, gate.shut():
        others = threading.Thread(target=httpx2.post, args=[f"{url}/classify"],
                                  kwargs={"files": parts(plain("red")), "timeout": 20})  # fmt: skip
        others.start()
        assert gate.entered.wait(20)
        log = RetryLog(on_first=gate._opened.set)  # noqa: SLF001 - as leaving the gate does
        about = {"on_retry": log}
        assert ask(url, "classify", plain("blue"), timeout=9, about=about).best.label == "blue"
        others.join()
    assert log.errors
    for seconds, error in zip(log.seconds, log.errors, strict=True):
        assert (type(error), error.status, error.code) == (Unavailable, 503, "overloaded")
        assert error.retry_after
        assert seconds >= error.retry_after


@pytest.fixture
def one_a_day(tmp_path: Path) -> Iterator[str]:
    """A service that allows a key one request a day."""
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"key").hexdigest()
    keys.write_text(f'[web]\nsha256 = "{digest}"\nlimits = ["1/day"]\n')
    with live(api_keys_file=keys) as url:
        yield url


def test_no_retry_after_the_deadline(ask: Ask, one_a_day: str) -> None:
    log = RetryLog()
    about = {"key": "key", "on_retry": log}
    assert ask(one_a_day, "classify", plain("red"), about=about).best.label == "red"
    with pytest.raises(Unavailable) as raised:
        ask(one_a_day, "classify", plain("red"), timeout=30, about=about)
    assert (raised.value.status, raised.value.code) == (429, "rate_limited")
    assert raised.value.retry_after is not None
    assert raised.value.retry_after > 30
    assert log.errors == []


def test_the_retry_after_header_is_used_without_a_problem_document(ask: Ask) -> None:
    busy = answered(b"busy", "503 Busy", "Retry-After: 1\r\n")
    log = RetryLog()
    with misbehaving(busy, GOOD) as (url, asked):
        assert ask(url, "classify", b"image", about={"on_retry": log}).best.label == "red"
    assert log.seconds == [1]
    assert len(asked) == 2


def test_the_remaining_time_is_sent(ask: Ask) -> None:
    busy = answered(b'{"detail": "no", "code": "no", "retry_after_ms": 200}', "503 Busy")
    with misbehaving(busy, GOOD) as (url, asked):
        ask(url, "classify", b"image", timeout=10.0)
    first, again = (int(re.findall(rb"(?i)x-timeout-ms: (\d+)", head)[0]) for head in asked)
    assert first - again >= 200
    assert 5000 < again < first <= 10_000


@pytest.mark.parametrize("value", ["-1", '"soon"', "true", "NaN", "Infinity", "9" * 400, "[1]"])
def test_an_invalid_retry_after_ms_is_ignored(value: str) -> None:
    problem = f'{{"detail": "no", "code": "no", "status": 503, "retry_after_ms": {value}}}'
    assert errors.from_response(503, {}, problem.encode()).retry_after is None
    assert errors.from_response(503, {"retry-after": "2"}, problem.encode()).retry_after == 2.0
    assert errors.from_problem(json.loads(problem)).retry_after is None


@pytest.mark.parametrize(
    "value", ["-1", "soon", "1.5", "²", "9" * 400, "", "Fri, 31 Dec 1999 23:59:59 GMT"]
)
def test_an_invalid_retry_after_header_is_ignored(value: str) -> None:
    assert errors.from_response(503, {"retry-after": value}, b"").retry_after is None


def test_a_refused_connection_is_retried(ask: Ask) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.settimeout(20)
        thread = threading.Thread(target=answering, args=[listener, [GOOD], []])

        def begin() -> None:
            listener.listen()
            thread.start()

        log = RetryLog(on_first=begin)
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        assert ask(url, "classify", b"image", about={"on_retry": log}).best.label == "red"
        thread.join()
    assert [(type(error), error.code) for error in log.errors] == [(Unreachable, "unreachable")]


@pytest.mark.parametrize("call", ["models", "wait_reachable"])
def test_refused_connections_raise_at_the_deadline(ask: Ask, call: str) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        url = f"http://{HOST}:{taken.getsockname()[1]}"
        log = RetryLog()
        with pytest.raises(Unreachable, match=f"^cannot connect to {url}: ") as raised:
            ask(url, call, timeout=0.5, about={"on_retry": log})
    assert raised.value.status is None
    assert len(log.seconds) >= 2  # delays of 0.05 s or more, growing
    assert sum(log.seconds) < 0.5


@pytest.mark.parametrize("status", ["200 OK", "401 No", "404 No", "503 Busy"])
def test_a_response_of_any_status_is_reachable(ask: Ask, status: str) -> None:
    with misbehaving(answered(b"", status)) as (url, asked):
        ask(url, "wait_reachable", timeout=5)
    assert [head.split(b" HTTP")[0] for head in asked] == [b"GET /livez"]


def test_wait_reachable_retries_closed_connections(ask: Ask) -> None:
    """A container's port accepts and closes connections while the service starts."""
    log = RetryLog()
    with misbehaving(b"", b"", b"", GOOD) as (url, asked):
        ask(url, "wait_reachable", timeout=20, about={"on_retry": log})
    assert [type(error) for error in log.errors] == [Unreachable] * 3
    assert len(asked) == 4


def half(connection: socket.socket) -> None:
    connection.sendall(GOOD[:-20])


def test_a_disconnect_is_retried_once(ask: Ask) -> None:
    with misbehaving(half, GOOD) as (url, asked):
        assert ask(url, "classify", b"image").best.label == "red"
    assert len(asked) == 2


@pytest.mark.parametrize("say", [half, b"", b"nonsense\r\n\r\n"])
def test_a_second_disconnect_raises(ask: Ask, say: Say) -> None:
    with misbehaving(say, say, say) as (url, asked):
        with pytest.raises(Unreachable, match="closed the connection"):
            ask(url, "classify", b"image")
        assert len(asked) == 2


def test_a_504_is_retried_once(ask: Ask) -> None:
    late = answered(b'{"detail": "too late", "code": "deadline_exceeded"}', "504 Late")
    with misbehaving(late, late) as (url, asked):
        with pytest.raises(TimedOut, match="too late") as raised:
            ask(url, "classify", b"image")
        assert raised.value.status == 504
        assert len(asked) == 2


def silent(connection: socket.socket) -> None:
    connection.settimeout(10)
    assert not connection.recv(1)  # until the client disconnects


def trickling(connection: socket.socket) -> None:
    connection.sendall(answered(b" " * 1000)[:-1000])
    with suppress(OSError):
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize("say", [silent, trickling])
def test_a_slow_response_times_out(ask: Ask, say: Say) -> None:
    with misbehaving(say) as (url, asked):
        with pytest.raises(TimedOut, match="did not answer in time") as raised:
            ask(url, "classify", b"image", timeout=0.3)
        assert (raised.value.code, raised.value.status) == ("deadline_exceeded", None)
        assert len(asked) == 1


def test_a_zero_timeout_sends_no_request(ask: Ask, url: str) -> None:
    with pytest.raises(TimedOut, match="has passed"):
        ask(url, "classify", plain("red"), timeout=0.0)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e9])
def test_an_invalid_timeout_raises(ask: Ask, url: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds up to 604800"):
        ask(url, "models", timeout=seconds)
    with pytest.raises(ValueError, match="timeout must be a number"):
        ask(url, "models", about={"timeout": seconds})
    assert ask(url, "models", timeout=transport.MAX_TIMEOUT).default == "fake"


@pytest.mark.parametrize("key", ["clé", "secret\n", " secret"])
def test_an_invalid_key_raises(ask: Ask, url: str, key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII without spaces around") as raised:
        ask(url, "models", about={"key": key})
    assert type(raised.value) is ValueError
    assert key not in str(raised.value)  # it may be printed


@pytest.mark.parametrize("address", ["ftp://host", "host:1", "http://host:no"])
@pytest.mark.parametrize("call", ["models", "wait_reachable"])
def test_an_invalid_url_is_not_retried(ask: Ask, address: str, call: str) -> None:
    log = RetryLog()
    with pytest.raises(Unreachable, match="cannot send a request to"):
        ask(address, call, about={"on_retry": log})
    assert log.errors == []


def test_a_tls_error_is_not_retried(ask: Ask) -> None:
    log = RetryLog()
    with misbehaving(b"no TLS") as (url, _), pytest.raises(Unreachable, match="cannot connect to"):
        ask(url.replace("http:", "https:"), "models", about={"on_retry": log})
    assert log.errors == []


# Retry decisions.

BUSY = Unavailable("no", code="overloaded", status=503, retry_after=7.0)
AT_ONCE = Unavailable("no", code="overloaded", status=503, retry_after=0.0)
UNTOLD = Unavailable("no", code="overloaded", status=503)
REFUSED = Unreachable("no")
HUNG_UP = Unreachable("no", disconnected=True)


@pytest.mark.parametrize(
    ("error", "failures", "seconds"),
    [
        (BUSY, Failures(), 7.0),
        (BUSY, Failures(1000, 1), 7.0),
        (AT_ONCE, Failures(), 0.1),
        (AT_ONCE, Failures(1000), 0.1),
        (UNTOLD, Failures(), 0.1),
        (REFUSED, Failures(1), 0.2),
        (REFUSED, Failures(3, 1), 0.8),
        (REFUSED, Failures(100_000), 5.0),
        (HUNG_UP, Failures(2), 0.4),
        (HUNG_UP, Failures(2, 1), None),
        (Unreachable("no", is_permanent=True), Failures(), None),
        (TimedOut("no", code="late", status=504), Failures(), 0.1),
        (TimedOut("no", code="late"), Failures(), None),
        (Rejected("no", code="bad", status=422), Failures(), None),
        (Failed("no", code="bad", status=500), Failures(), None),
        (Unauthorized("no", code="bad", status=401), Failures(), None),
    ],
)
def test_retry_delays(error: ClientError, failures: Failures, seconds: float | None) -> None:
    assert retries.delay(error, failures, jitter=1.0) == seconds
    by_chance = retries.delay(error, failures, jitter=0.0)
    assert by_chance == (seconds if error is BUSY or seconds is None else seconds / 2)


def test_failures_are_counted() -> None:
    assert Failures().after(BUSY).after(HUNG_UP).after(REFUSED) == Failures(3, 1)


def test_every_result_is_a_value() -> None:
    error = errors.from_response(503, {"retry-after": "3"}, b'{"detail": "d", "code": "c"}')
    assert (type(error), error.detail, error.code, error.status, error.retry_after) == (
        *(Unavailable, "d", "c", 503),
        3.0,
    )
    one = client.Prediction("a", None, 0, 1.0)
    with pytest.raises(AttributeError):
        one.label = "b"  # type: ignore[misc]  # frozen


def test_the_client_is_light() -> None:
    heavy = {"torch", "fastapi", "starlette", "pydantic", "numpy", "PIL", "uvicorn", "rich"}
    program = "import sys, service.client; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert not heavy & {*done.stdout.split()}
