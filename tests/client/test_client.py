"""The Python client: results and errors as values, retries in time; both kinds in every test."""

import asyncio
import hashlib
import io
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from conftest import (
    FakeBackend,
    Served,
    colour_or_map,
    fake_backend,
    in_thread,
    wait_ready,
)
from test_classify import Gate, parts, plain

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
    calls,
    clients,
    errors,
    retries,
)
from service.client.results import Box, Member
from service.client.retries import Failures
from service.server.app import create_app
from service.settings import Settings

HOST = "127.0.0.1"
TLS = b"\x16"  # how it begins
LABELS = {"red": "red", "lime": "green", "blue": "blue"}  # of colours, by the fake model
ONE = {"model": "fake", "version": "1", "views": "single", "predictions": [
    {"label": "red", "wnid": None, "index": 0, "probability": 1.0, "more": "to come"}
]}  # fmt: skip


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Make a client of either kind, and one call."""

    def blocking(url: str, call: str, *what: Any, about: Any = None, **how: Any) -> Any:
        with Client(url, **(about or {})) as client:
            return getattr(client, call)(*what, **how)

    def on_a_loop(url: str, call: str, *what: Any, about: Any = None, **how: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(url, **(about or {})) as client:
                return await getattr(client, call)(*what, **how)

        return asyncio.run(main())

    return blocking if request.param == "blocking" else on_a_loop


@contextmanager
def live(backend: FakeBackend | None = None, **chosen: Any) -> Iterator[str]:
    """Serve the real application with a fake model in a thread; gives its address."""
    settings = Settings(model="fake", views="single", **chosen)
    backend = backend or fake_backend(colour_or_map, explains=True)
    app = create_app(settings, load=lambda *_: backend)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with (
        socket.create_server((HOST, 0), backlog=1000) as listener,
        in_thread(server, listener) as port,
    ):
        url = f"http://{HOST}:{port}"
        with httpx2.Client(base_url=url) as ready:
            wait_ready(ready)
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service that takes three images at once."""
    with live(max_images_per_request=3, max_body_bytes=4096) as url:
        yield url


Say = bytes | Callable[[socket.socket], None]


def whole(connection: socket.socket) -> bytes:
    """Read a request to its end; what is left unread would break the connection."""
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
    """Answer one connection after the other so, each once, and hang up."""
    for say in says:
        with suppress(OSError):  # whoever called has hung up, or nobody calls any more
            connection, _ = listener.accept()
            with connection:
                asked.append(whole(connection))
                if callable(say):
                    say(connection)
                else:
                    connection.sendall(say)


@contextmanager
def misbehaving(*says: Say) -> Iterator[tuple[str, list[bytes]]]:
    """A server that says what it is told to; gives its address and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=answering, args=[listener, says, asked])
        thread.start()
        yield f"http://{HOST}:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)  # which wakes who waits for another caller
        thread.join()


def answered(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


GOOD = answered(json.dumps(ONE).encode())


# What is asked is answered.


def test_a_image_is_ranked_whatever_holds_it(ask: Ask, url: str, tmp_path: Path) -> None:
    data = plain("lime")
    file = tmp_path / "lime.png"
    file.write_bytes(data)
    with file.open("rb") as opened:
        held = [data, bytearray(data), memoryview(data), file, str(file), opened, io.BytesIO(data)]
        rankings = [ask(url, "classify", one) for one in held]
    assert len({*rankings}) == 1
    ranking: Ranking = rankings[0]
    assert (ranking.model, ranking.version, ranking.views) == ("fake0", "1", "single")
    assert ranking.notice is None
    assert ranking.best.label == "green"
    assert [one.index for one in ranking.predictions] == [1, 0, 2]
    assert ranking.best.wnid is None
    assert ranking.best.probability == pytest.approx(1)


def test_what_is_wanted_is_asked_for(ask: Ask, url: str) -> None:
    ranking = ask(url + "/", "classify", plain("red"), views="ten", top_k=1, model=None)
    assert (ranking.views, len(ranking.predictions)) == ("ten", 1)


def test_several_are_ranked_in_their_order_though_the_service_takes_fewer_at_once(
    ask: Ask, url: str, tmp_path: Path
) -> None:
    colours = [*itertools.islice(itertools.cycle(LABELS), 40)]
    images: list[Any] = [plain(colour) for colour in colours]
    images[5] = images[5][:-30]
    images[7] = tmp_path / "gone.png"
    images[20] = bytes(5000)  # more than a body may have
    results = ask(url, "classify_all", iter(images), top_k=1)
    assert len(results) == 40
    bad = {at: one for at, one in enumerate(results) if not isinstance(one, Ranking)}
    assert {at: (type(one), one.code) for at, one in bad.items()} == {
        5: (Rejected, "unreadable_image"),
        7: (Unreadable, "unreadable_file"),
        20: (Rejected, "too_large"),
    }
    good = {at: one.best.label for at, one in enumerate(results) if isinstance(one, Ranking)}
    assert good == {at: LABELS[colours[at]] for at in good}
    assert len(good) == 37


def test_large_images_go_in_several_requests(ask: Ask) -> None:
    red = plain("red")
    large = red + bytes(calls.MOST_BYTES // 2)  # what follows a PNG's end is nobody's
    with live(max_body_bytes=calls.MOST_BYTES + 2**20) as url:
        results = ask(url, "classify_all", [large, red, large, large])
    assert [one.best.label for one in results] == ["red"] * 4


def test_no_images_are_no_request(ask: Ask) -> None:
    assert ask("http://nowhere.invalid", "classify_all", []) == []


def test_the_models_are_told(ask: Ask, url: str) -> None:
    models = ask(url, "models")
    assert models.default == "fake"
    views = ("single", "ten", "paper", "dense", "auto")
    member = Member("fake0", "1", "fake", "0" * 64)
    assert models.models == (
        Model("fake", "1", "cpu", "float32", 3, views, "single", None,
              explains=True, members=(member,)),
    )  # fmt: skip


def test_an_explanation_is_told_or_shown(ask: Ask, url: str) -> None:
    told = ask(url, "explain", plain("blue"), label="red")
    assert (told.label, told.index, told.views) == ("red", 0, "single")
    (one,) = told.maps
    assert one.grid == ((1.0, 1.0), (1.0, 1.0))
    assert (one.logit, told.bias) == (2.0, 1.0)
    assert one.box == told.box == Box(0.0, 0.0, 1.0, 1.0)
    other = ask(url, "explain", plain("blue"), views="ten")
    assert (other.label, len(other.maps), other.box) == ("blue", 10, None)
    assert ask(url, "heat_map", plain("blue"), label=0).startswith(b"\x89PNG")


def test_a_real_photo_is_ranked_as_the_service_answers(
    ask: Ask, served: Served, beagle: bytes
) -> None:
    url = f"http://{HOST}:{served.port}"
    answer = httpx2.post(f"{url}/classify?views=single", files=parts(beagle), timeout=60).json()
    ranking = ask(url, "classify", beagle, views="single")
    assert ranking.best.label == "beagle"
    told = [(p["label"], p["wnid"], p["index"]) for p in answer["predictions"]]
    assert [(p.label, p.wnid, p.index) for p in ranking.predictions] == told
    for one, other in zip(ranking.predictions, answer["predictions"], strict=True):
        assert one.probability == pytest.approx(other["probability"], abs=1e-4)
    good, bad = ask(url, "classify_all", [beagle, b"none"], views="single")
    assert good.best.label == "beagle"
    assert bad.status == 415


# What is refused is told.


def test_a_broken_image_is_told(ask: Ask, url: str) -> None:
    with pytest.raises(Rejected, match="the PNG image is broken or cut short") as told:
        ask(url, "classify", plain("red")[:-30])
    error = told.value
    assert (error.status, error.code, error.retry_after) == (422, "unreadable_image", None)
    assert error.detail == str(error)


def test_what_cannot_be_read_is_told(ask: Ask, url: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"gone\.png"):
        ask(url, "classify", tmp_path / "gone.png")
    with pytest.raises(Unreadable, match="in binary mode"):
        ask(url, "classify", io.StringIO("text"))


def test_a_wrong_key_is_told_and_the_right_one_is_let_in(ask: Ask) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    with live(api_key_hashes=f"web:{digest}") as url:
        for about in ({"key": "wrong"}, {}):
            with pytest.raises(Unauthorized, match="send your API key") as told:
                ask(url, "classify", plain("red"), about=about)
            assert (told.value.status, told.value.code) == (401, "unauthorized")
        assert ask(url, "classify", plain("red"), about={"key": "key"}).best.label == "red"


def test_who_is_not_let_in_does_not_send_the_rest(ask: Ask) -> None:
    body = json.dumps({"detail": "no", "code": "unauthorized"}).encode()
    with misbehaving(answered(body, "401 Unauthorized")) as (url, asked):
        results = ask(url, "classify_all", [plain("red")] * 40)
    assert [type(one) for one in results] == [Unauthorized] * 40
    assert len(asked) == 1


def test_one_failed_request_leaves_the_others(ask: Ask) -> None:
    several = answered(
        json.dumps({**ONE, "results": [{"predictions": ONE["predictions"]}] * 16}).encode()
    )
    with misbehaving(answered(b"", "500 Oh"), several) as (url, _):
        results = ask(url, "classify_all", [plain("red")] * 32)
    assert [type(one) for one in results] == [Failed] * 16 + [Ranking] * 16


@pytest.mark.parametrize(
    "body",
    [b"none", b"[]", b"{}", b"null", b"\xff",
     b'{"model": "a", "version": "1", "views": "b", "predictions": [1]}'],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_told(ask: Ask, body: bytes) -> None:
    with misbehaving(answered(body)) as (url, _), pytest.raises(Failed) as told:
        ask(url, "classify", b"image")
    assert (told.value.code, told.value.status) == ("invalid_answer", 200)


def test_fewer_results_than_images_make_no_sense(ask: Ask) -> None:
    body = json.dumps({**ONE, "results": []}).encode()
    with misbehaving(answered(body)) as (url, _):
        assert [one.code for one in ask(url, "classify_all", [b"1", b"2"])] == [
            "invalid_answer"
        ] * 2


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"detail": 1, "code": "a"}'])
def test_an_error_without_a_problem_is_told(ask: Ask, body: bytes) -> None:
    with misbehaving(answered(body, "502 Bad Gateway")) as (url, _), pytest.raises(Failed) as told:
        ask(url, "classify", b"image")
    assert told.value.detail == "the answer is 502, without a reason"
    assert told.value.status == 502


# What may go better is tried again, in time.


class Told:
    """Notes what a client waits for; does something at the first time."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.errors: list[ClientError] = []
        self.seconds: list[float] = []
        self._then = then

    def __call__(self, error: ClientError, seconds: float) -> None:
        """Be told."""
        if not self.errors:
            self._then()
        self.errors.append(error)
        self.seconds.append(seconds)


def test_who_is_refused_for_overload_comes_again_when_told(ask: Ask) -> None:
    """The memory for images that wait has room for one, which does not get on."""
    gate = Gate()
    backend = fake_backend(gate)
    with live(backend, max_queue_bytes=200_000) as url, gate.shut():
        others = threading.Thread(target=httpx2.post, args=[f"{url}/classify"],
                                  kwargs={"files": parts(plain("red")), "timeout": 20})  # fmt: skip
        others.start()
        assert gate.entered.wait(20)
        told = Told(then=gate._opened.set)  # noqa: SLF001 - as leaving the gate does
        about = {"waiting": told}
        assert ask(url, "classify", plain("blue"), timeout=9, about=about).best.label == "blue"
        others.join()
    assert {type(one) for one in told.errors} == {Unavailable}
    assert {(one.status, one.code) for one in told.errors} == {(503, "overloaded")}
    for seconds, one in zip(told.seconds, told.errors, strict=True):
        assert one.retry_after
        assert seconds >= one.retry_after


@pytest.fixture
def one_a_day(tmp_path: Path) -> Iterator[str]:
    """A service that lets a key in once."""
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"key").hexdigest()
    keys.write_text(f'[web]\nsha256 = "{digest}"\nlimits = ["1/day"]\n')
    with live(api_keys_file=keys) as url:
        yield url


def test_no_retry_is_made_that_could_not_be_in_time(ask: Ask, one_a_day: str) -> None:
    told = Told()
    about = {"key": "key", "waiting": told}
    assert ask(one_a_day, "classify", plain("red"), about=about).best.label == "red"
    with pytest.raises(Unavailable) as refused:
        ask(one_a_day, "classify", plain("red"), timeout=30, about=about)
    assert (refused.value.status, refused.value.code) == (429, "rate_limited")
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 30
    assert told.errors == []


def test_retry_after_is_heeded_where_there_is_no_problem(ask: Ask) -> None:
    busy = answered(b"busy", "503 Busy", "Retry-After: 1\r\n")
    told = Told()
    with misbehaving(busy, GOOD) as (url, asked):
        assert ask(url, "classify", b"image", about={"waiting": told}).best.label == "red"
    assert told.seconds == [1]
    assert len(asked) == 2


def test_a_date_to_come_again_is_not_heeded(ask: Ask) -> None:
    busy = answered(b"busy", "503 Busy", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n")
    told = Told()
    with misbehaving(busy, GOOD) as (url, _):
        assert ask(url, "classify", b"image", about={"waiting": told}).best.label == "red"
    assert told.errors[0].retry_after is None


def test_what_is_left_of_the_time_is_passed_on(ask: Ask) -> None:
    busy = answered(b'{"detail": "no", "code": "no", "retry_after_ms": 200}', "503 Busy")
    with misbehaving(busy, GOOD) as (url, asked):
        ask(url, "classify", b"image", timeout=10.0)
    first, again = (int(re.findall(rb"(?i)x-timeout-ms: (\d+)", one)[0]) for one in asked)
    assert first - again >= 200
    assert 5000 < again < first <= 10_000


def test_who_may_come_again_at_once_pauses_all_the_same(ask: Ask) -> None:
    now = answered(b'{"detail": "no", "code": "no", "retry_after_ms": 0}', "503 Busy")
    told = Told()
    with misbehaving(now, now, now, GOOD) as (url, _):
        assert ask(url, "classify", b"image", about={"waiting": told}).best.label == "red"
    assert len(told.seconds) == 3
    assert min(told.seconds) >= retries.FIRST_PAUSE / 2


@pytest.mark.parametrize("told", ["-1", '"soon"', "true", "NaN", "Infinity", "9" * 400, "[1]"])
def test_a_time_that_makes_no_sense_is_none(told: str) -> None:
    problem = f'{{"detail": "no", "code": "no", "status": 503, "retry_after_ms": {told}}}'
    assert errors.of(503, {}, problem.encode()).retry_after is None
    assert errors.of(503, {"retry-after": "2"}, problem.encode()).retry_after == 2.0
    assert errors.described(json.loads(problem)).retry_after is None


@pytest.mark.parametrize("told", ["-1", "soon", "1.5", "²", "9" * 400, ""])
def test_a_header_that_makes_no_sense_says_nothing(told: str) -> None:
    assert errors.of(503, {"retry-after": told}, b"").retry_after is None


def test_a_service_that_is_not_there_yet_is_waited_for(ask: Ask) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.settimeout(20)
        thread = threading.Thread(target=answering, args=[listener, [GOOD], []])

        def begin() -> None:
            listener.listen()
            thread.start()

        told = Told(then=begin)
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        assert ask(url, "classify", b"image", about={"waiting": told}).best.label == "red"
        thread.join()
    assert [(type(one), one.code) for one in told.errors] == [(Unreachable, "unreachable")]


def test_a_service_that_is_not_there_is_told_in_the_end(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        url = f"http://{HOST}:{taken.getsockname()[1]}"
        told = Told()
        with pytest.raises(Unreachable, match=f"{url} does not answer: ") as last:
            ask(url, "models", timeout=0.5, about={"waiting": told})
    assert last.value.status is None
    assert len(told.seconds) >= 2  # pauses of 0.05 s or more, and more each time
    assert sum(told.seconds) < 0.5


@pytest.mark.parametrize("status", ["200 OK", "401 No", "404 No", "503 Busy"])
def test_a_service_is_reached_when_it_answers_anything(ask: Ask, status: str) -> None:
    with misbehaving(answered(b"", status)) as (url, asked):
        ask(url, "reach", timeout=5)
    assert [one.split(b" HTTP")[0] for one in asked] == [b"GET /livez"]


def test_a_service_is_reached_though_connections_are_closed_at_first(ask: Ask) -> None:
    """As the port of a container is, while the service in it starts."""
    told = Told()
    with misbehaving(b"", b"", b"", GOOD) as (url, asked):
        ask(url, "reach", timeout=20, about={"waiting": told})
    assert [type(one) for one in told.errors] == [Unreachable] * 3
    assert len(asked) == 4


def test_a_service_that_is_not_reached_is_told_in_the_end(ask: Ask) -> None:
    told = Told()
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        url = f"http://{HOST}:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=f"^{url} does not answer: "):
            ask(url, "reach", timeout=0.5, about={"waiting": told})
    assert len(told.seconds) >= 2
    with pytest.raises(Unreachable, match="cannot be asked"):
        ask("ftp://host", "reach")


def half(connection: socket.socket) -> None:
    connection.sendall(GOOD[:-20])


def test_a_service_that_ends_midway_is_asked_once_more(ask: Ask) -> None:
    with misbehaving(half, GOOD) as (url, asked):
        assert ask(url, "classify", b"image").best.label == "red"
    assert len(asked) == 2


@pytest.mark.parametrize("say", [half, b"", b"nonsense\r\n\r\n"])
def test_a_service_that_hangs_up_again_is_left_alone(ask: Ask, say: Say) -> None:
    with misbehaving(say, say, say) as (url, asked):
        with pytest.raises(Unreachable, match="has hung up"):
            ask(url, "classify", b"image")
        assert len(asked) == 2


def test_an_answer_that_was_late_by_the_services_clock_is_asked_for_once_more(ask: Ask) -> None:
    late = answered(b'{"detail": "too late", "code": "deadline_exceeded"}', "504 Late")
    with misbehaving(late, late) as (url, asked):
        with pytest.raises(TimedOut, match="too late") as told:
            ask(url, "classify", b"image")
        assert told.value.status == 504
        assert len(asked) == 2


def silent(connection: socket.socket) -> None:
    connection.settimeout(10)
    assert not connection.recv(1)  # until the caller hangs up


def trickling(connection: socket.socket) -> None:
    connection.sendall(answered(b" " * 1000)[:-1000])
    with suppress(OSError):
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize("say", [silent, trickling])
def test_a_service_that_does_not_answer_is_left_in_time(ask: Ask, say: Say) -> None:
    with misbehaving(say) as (url, asked):
        started = time.monotonic()
        with pytest.raises(TimedOut, match="did not answer in time") as told:
            ask(url, "classify", b"image", timeout=0.3)
        assert 0.3 <= time.monotonic() - started < 10
        assert (told.value.code, told.value.status) == ("deadline_exceeded", None)
        assert len(asked) == 1


def test_a_call_without_time_asks_nobody(ask: Ask, url: str) -> None:
    with pytest.raises(TimedOut, match="is used up"):
        ask(url, "classify", plain("red"), timeout=0.0)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e9])
def test_a_time_that_no_clock_can_wait_for_is_told(ask: Ask, url: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="a timeout is a number of seconds up to 604800"):
        ask(url, "models", timeout=seconds)
    with pytest.raises(ValueError, match="a timeout is a number"):
        ask(url, "models", about={"timeout": seconds})
    assert ask(url, "models", timeout=clients.LONGEST_TIMEOUT).default == "fake"


@pytest.mark.parametrize("key", ["clé", "secret\n", " secret"])
def test_a_key_that_no_header_can_hold_is_told(ask: Ask, url: str, key: str) -> None:
    with pytest.raises(ValueError, match="ASCII characters alone, and no spaces") as told:
        ask(url, "models", about={"key": key})
    assert type(told.value) is ValueError
    assert key not in str(told.value)  # it may be printed


@pytest.mark.parametrize("address", ["ftp://host", "host:1", "http://host:no"])
def test_what_is_no_address_is_told_at_once(ask: Ask, address: str) -> None:
    told = Told()
    with pytest.raises(Unreachable, match="cannot be asked"):
        ask(address, "models", about={"waiting": told})
    assert told.errors == []


def test_a_certificate_or_the_like_is_not_waited_for(ask: Ask) -> None:
    told = Told()
    with misbehaving(b"no TLS") as (url, _), pytest.raises(Unreachable, match="does not answer"):
        ask(url.replace("http:", "https:"), "models", about={"waiting": told})
    assert told.errors == []


# The decisions.

BUSY = Unavailable("no", code="overloaded", status=503, retry_after=7.0)
AT_ONCE = Unavailable("no", code="overloaded", status=503, retry_after=0.0)
UNTOLD = Unavailable("no", code="overloaded", status=503)
REFUSED = Unreachable("no")
HUNG_UP = Unreachable("no", hung_up=True)


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
        (Unreachable("no", is_final=True), Failures(), None),
        (TimedOut("no", code="late", status=504), Failures(), 0.1),
        (TimedOut("no", code="late"), Failures(), None),
        (Rejected("no", code="bad", status=422), Failures(), None),
        (Failed("no", code="bad", status=500), Failures(), None),
        (Unauthorized("no", code="bad", status=401), Failures(), None),
    ],
)
def test_when_to_ask_again(error: ClientError, failures: Failures, seconds: float | None) -> None:
    assert retries.pause(error, failures, chance=1.0) == seconds
    by_chance = retries.pause(error, failures, chance=0.0)
    assert by_chance == (seconds if error is BUSY or seconds is None else seconds / 2)


def test_failures_are_counted() -> None:
    assert Failures().after(BUSY).after(HUNG_UP).after(REFUSED) == Failures(3, 1)


def test_every_result_is_a_value() -> None:
    told = errors.of(503, {"retry-after": "3"}, b'{"detail": "d", "code": "c"}')
    assert (type(told), told.detail, told.code, told.status, told.retry_after) == (
        *(Unavailable, "d", "c", 503),
        3.0,
    )
    one = client.Prediction("a", None, 0, 1.0)
    with pytest.raises(AttributeError):
        one.label = "b"  # type: ignore[misc]  # that it is frozen is the point


def test_the_client_is_light() -> None:
    heavy = {"torch", "fastapi", "starlette", "pydantic", "numpy", "PIL", "uvicorn", "rich"}
    program = "import sys, service.client; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert not heavy & {*done.stdout.split()}
