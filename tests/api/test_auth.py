"""Authentication, rate limits, CORS, security headers; no response or log leaks a key."""

import asyncio
import hashlib
import http.client
import logging
import os
import platform
import re
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2
import numpy as np
import pytest
from conftest import ROOT, FakeBackend, fake_backend, serving, wait_ready
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message, Scope
from starlette.websockets import WebSocketDisconnect
from test_classify import JPEG, Gate, assert_problem, encoded, parts, plain, service
from test_metrics import counts
from test_uploads import FORM, asgi, never

from service.api.auth import api_keys
from service.api.routes import health
from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.scheduling.types import Batch
from service.server.app import create_app
from service.settings import Settings

KEY, OTHER = api_keys.new(), api_keys.new()
RED = parts(plain("red"))


def named(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


def digests(**named: str) -> str:
    return ",".join(f"{n}:{hashlib.sha256(k.encode()).hexdigest()}" for n, k in named.items())


def table(name: str, key: str, *limits: str) -> str:
    return (
        f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\nlimits = {[*limits]}\n'
    )


GUARDED = Settings(
    model="fake",
    api_key_hashes=digests(web=KEY, batch=OTHER),
    max_body_bytes=100_000,
    max_images_per_request=3,
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service on a fake model, for two keys without limits."""
    with service(lambda *_: fake_backend(), GUARDED) as client:
        yield client


# Who is let in.


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bEaReR   {KEY} "},
        {"X-API-Key": KEY},
        {"X-API-Key": KEY, "Authorization": "Basic c29tZW9uZTplbHNl"},
        {"X-API-Key": OTHER, "Authorization": "Bearer somebody's in front"},
    ],
)
def test_a_key_lets_in(headers: dict[str, str], client: TestClient) -> None:
    assert client.post("/classify?views=single", files=RED, headers=headers).status_code == 200
    assert client.get("/models", headers=headers).status_code == 200
    assert client.get("/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": f"{KEY},{OTHER}"},
        {"X-API-Key": f"Bearer {KEY}"},
        {"X-API-Key": hashlib.sha256(KEY.encode()).hexdigest()},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer{KEY}"},
        {"Authorization": f"Basic {KEY}"},
        {"Cookie": f"X-API-Key={KEY}"},
    ],
)
def test_a_request_without_a_key_is_refused(headers: dict[str, str], client: TestClient) -> None:
    for answer in (
        client.post("/classify", files=RED, headers=headers),
        client.get("/models", headers=headers),
        client.get(f"/nothing?key={KEY}", headers=headers),
    ):
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_metrics_and_the_documentation_need_none(client: TestClient) -> None:
    for path in (*health.PATHS, "/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "path",
    ["//classify", "/livez/../classify", "/docs/", "/livez/", "/LIVEZ", "livez", "", "/docs/x",
     "/livez\x00", "/livez;/classify", "/models?/livez", "/classify/livez"],
)  # fmt: skip
def test_a_path_that_only_looks_open_is_not(path: str, client: TestClient) -> None:
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    assert call(client, scope)["status"] == 401


def call(client: TestClient, scope: Scope) -> Message:
    """Call the app as no client would, and give the start of its answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    assert client.portal is not None
    client.portal.call(client.app, {"root_path": "", **scope}, never, send)
    return sent[0]


def test_below_a_root_path_the_same_are_open(client: TestClient) -> None:
    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": []}
    below = [
        call(client, {**scope, "root_path": "/api", "path": f"/api{path}"})["status"]
        for path in ("/livez", "/models")
    ]
    assert below == [200, 401]


def test_a_refusal_waits_for_nothing_of_the_body(client: TestClient) -> None:
    start, *_ = asgi(client, never, {"content-type": FORM, "content-length": "100"})
    assert start["status"] == 401


def test_the_key_comes_before_all_other_questions() -> None:
    loading = threading.Event()

    def load(*_: object) -> FakeBackend:
        loading.wait()
        return fake_backend()

    with TestClient(create_app(GUARDED, load=load)) as client:
        refused = [client.post("/classify", files=RED, headers=named(key)) for key in ("x", KEY)]
        loading.set()
    assert [answer.status_code for answer in refused] == [401, 503]


def test_a_service_without_keys_refuses_no_request() -> None:
    with service(lambda *_: fake_backend()) as client:
        answer = client.post("/classify", files=RED, headers=named("whatever"))
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
        assert counts(client, "googlenet_key_requests_total") == {}


def test_what_is_no_request_needs_none(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/classify"):
        pass


def test_calls_are_counted_and_logged_by_the_name_of_their_key(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", KEY, "2/day") + table("batch", OTHER), "utf-8")
    name = "googlenet_key_requests_total"
    with service(lambda *_: fake_backend(), Settings(model="fake", api_keys_file=file)) as client:
        before = counts(client, name)
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                client.get("/models", headers=named(KEY))
            client.post("/classify", files=RED, headers=named("wrong"))
        after = counts(client, name)
        requests = counts(client, "googlenet_requests_total")
        rejected = counts(client, "googlenet_rejected_total")
        file.write_text(table("web", KEY), "utf-8")
        until(lambda: len(counts(client, name)) == 2)
    assert before == {
        (key, outcome): 0 for key in ("web", "batch") for outcome in ("admitted", "rate_limited")
    }
    assert after == before | {("web", "admitted"): 2, ("web", "rate_limited"): 1}
    assert requests["429", "GET", "interactive", "/models"] == 1
    assert requests["401", "POST", "interactive", "/classify"] == 1
    assert [rejected["interactive", code] for code in ("unauthorized", "rate_limited")] == [1, 1]
    lines = [record.request for record in caplog.records if hasattr(record, "request")]
    assert [line.get("key") for line in lines] == ["web", "web", "web", None]
    assert [line.get("code") for line in lines] == [None, None, "rate_limited", "unauthorized"]


def until(holds: Any) -> None:
    """Wait for what a file's next reading brings."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_broken_file_ends_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from service.__main__ import main  # noqa: PLC0415

    file = tmp_path / "keys.toml"
    file.write_text("[web]\n", "utf-8")
    assert main(["serve", "--model", "digits", "--api-keys-file", str(file)]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence == f"googlenet-service: {file}: line 1: web.sha256: Field required"


# How often.


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[TestClient]:
    """A service where one key may call twice a second and three times a day, the other freely."""
    file = tmp_path / "keys.toml"
    file.write_text(table("web", KEY, "2/second", "3/day") + table("batch", OTHER), "utf-8")
    with service(lambda *_: fake_backend(), Settings(model="fake", api_keys_file=file)) as client:
        yield client


STATE = r'"second";r=(\d), "day";r=(\d);t=86400'


def test_every_answer_tells_what_is_left(limited: TestClient) -> None:
    answers = [
        limited.post("/classify?views=single", files=RED, headers=named(KEY)),
        limited.post("/classify", content=b"no image", headers=named(KEY) | JPEG),
    ]
    for answer, left in zip(answers, (1, 0), strict=True):
        assert answer.headers["ratelimit-policy"] == '"second";q=2;w=1, "day";q=3;w=86400'
        assert answer.headers["ratelimit"] == (f'"second";r={left};t=1, "day";r={left + 1};t=86400')
    assert [answer.status_code for answer in answers] == [200, 415]
    free = limited.get("/models", headers=named(OTHER))
    assert "ratelimit" not in free.headers
    assert "ratelimit-policy" not in free.headers


def test_a_rate_limited_request_is_admitted_after_retry_after(limited: TestClient) -> None:
    first = time.monotonic()
    for _ in range(2):
        assert limited.get("/models", headers=named(KEY)).status_code == 200
    refused = limited.get("/models", headers=named(KEY))
    problem = assert_problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["ratelimit"] == '"second";r=0;t=1, "day";r=1;t=86400'
    assert 0 < problem["retry_after_ms"] <= 1000
    assert time.monotonic() - first < 1, "too slow a machine to tell"
    time.sleep(problem["retry_after_ms"] / 1000)
    assert limited.get("/models", headers=named(KEY)).status_code == 200
    exhausted = limited.get("/models", headers=named(KEY))
    assert_problem(exhausted, 429, "rate_limited")
    assert 86_390 < int(exhausted.headers["retry-after"]) <= 86_400


def test_a_refusal_does_not_use_another_keys_quota(limited: TestClient) -> None:
    for _ in range(2):
        limited.get("/models", headers=named(KEY))
    for _ in range(20):
        answer = limited.post("/classify", files=RED, headers=named(KEY))
        assert_problem(answer, 429, "rate_limited")
    start, *_ = asgi(limited, never, {"x-api-key": KEY, "content-type": FORM})
    assert start["status"] == 429  # without waiting for its body
    assert counts(limited, "googlenet_batch_rows_count") == {(): 0}
    assert counts(limited, "googlenet_stage_duration_seconds_count")["interactive", "upload"] == 0
    assert limited.post("/classify", files=RED, headers=named(OTHER)).status_code == 200


def test_probes_do_not_count(limited: TestClient) -> None:
    for _ in range(5):
        assert limited.get("/readyz", headers=named(KEY)).status_code == 200
    assert limited.get("/models", headers=named(KEY)).status_code == 200


# From which pages.

PAGE, ELSE = "https://app.example", "https://evil.example"


@pytest.mark.parametrize("origins", [PAGE, f"http://localhost:3000,{PAGE}", "*"])
def test_a_page_that_may_call_may_ask_first_and_needs_no_key_for_that(origins: str) -> None:
    with service(lambda *_: fake_backend(), with_cors(origins)) as client:
        asked = client.options("/classify", headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-api-key,content-type,x-timeout-ms,"
            "inference-header-content-length",
        })  # fmt: skip
        answer = client.post("/classify", files=RED, headers={**named(KEY), "Origin": PAGE})
        script = client.get("/models", headers=named(KEY))
    assert asked.status_code == answer.status_code == script.status_code == 200
    for one in (asked, answer):
        assert one.headers["access-control-allow-origin"] in {PAGE, "*"}
        assert "access-control-allow-credentials" not in one.headers
        assert one.headers["x-request-id"]
    assert asked.headers["access-control-allow-methods"] == "GET, POST"
    seen = answer.headers["access-control-expose-headers"].lower().split(", ")
    told = {"x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "server-timing"}
    assert told | {"inference-header-content-length"} < {*seen}


def with_cors(origins: str, **others: str) -> Settings:
    return GUARDED.model_copy(update={"cors_origins": origins, **others})


def preflight(client: TestClient, *headers: str) -> httpx2.Response:
    return client.options("/classify", headers={
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(headers),
    })  # fmt: skip


@pytest.mark.parametrize(
    "header",
    ["traceparent", "tracestate", "baggage", "sentry-trace", "x-requested-with", "priority"],
)
def test_a_page_that_is_traced_may_call(header: str) -> None:
    with service(lambda *_: fake_backend(), with_cors(PAGE)) as client:
        asked = preflight(client, "content-type", header)
        answer = client.get("/models", headers={**named(KEY), "Origin": PAGE})
    assert (asked.status_code, asked.text) == (200, "OK")
    seen = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert "traceresponse" in seen


def test_a_setting_names_the_headers_that_a_page_may_send_besides() -> None:
    ours = "X-Datadog-Trace-Id", "X-B3-TraceId"
    with service(lambda *_: fake_backend(), with_cors(PAGE)) as client:
        assert preflight(client, *ours).status_code == 400
    with_ours = with_cors(PAGE, cors_headers=",".join(ours))
    with service(lambda *_: fake_backend(), with_ours) as client:
        assert preflight(client, *ours, "traceparent").status_code == 200
        assert preflight(client, "x-other").status_code == 400


@pytest.mark.parametrize("wrong", ["a b", "a,", ",", "X:y", "*"])
def test_what_is_no_header_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="cors_headers"):
        Settings(cors_headers=wrong)


def test_other_origins_get_no_cors_headers() -> None:
    with service(lambda *_: fake_backend(), with_cors(PAGE)) as client:
        asked = client.options(
            "/classify", headers={"Origin": ELSE, "Access-Control-Request-Method": "POST"}
        )
        answer = client.get("/models", headers={**named(KEY), "Origin": ELSE})
    assert asked.status_code == 400
    assert answer.status_code == 200  # it is the browser that keeps it from the page
    for one in (asked, answer):
        assert "access-control-allow-origin" not in one.headers


def test_by_default_no_page_may_call(client: TestClient) -> None:
    asked = client.options(
        "/classify", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    )
    answer = client.get("/models", headers={**named(KEY), "Origin": PAGE})
    assert asked.status_code == 401
    for one in (asked, answer):
        assert not [name for name in one.headers if name.startswith("access-control")]


@pytest.mark.parametrize("wrong", ["", "app.example", "https://a/b", "https://a, https://b", "*,*"])
def test_what_is_no_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=wrong)


# Every error there is.


def bug(batch: Batch[PreparedImage]) -> list[Probabilities]:
    """Answer what cannot be: there are three labels."""
    return [np.arange(9.0) for _ in batch.slices]


def failing(_: Batch[PreparedImage]) -> list[Probabilities]:
    raise RuntimeError(f"CUDA error in {__file__}: out of memory")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, httpx2.Response]:
    """Give an answer of each error, by its code, as a page on another origin gets it."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(table("web", KEY) + table("batch", OTHER, "1/day"), "utf-8")
    settings = Settings(
        model="fake",
        api_keys_file=file,
        cors_origins=PAGE,
        max_body_bytes=100_000,
        max_images_per_request=3,
        upload_timeout_seconds=0.5,
    )
    page = {"Origin": PAGE, **named(KEY)}
    found: dict[str, httpx2.Response] = {}

    def keep(answer: httpx2.Response) -> None:
        found[answer.json()["code"]] = answer

    async def slowly() -> Any:
        yield b"x"
        await asyncio.sleep(1)

    loading = threading.Event()

    def load(*_: object) -> FakeBackend:
        loading.wait()
        return fake_backend()

    with TestClient(create_app(settings, load=load), headers=page) as client:
        keep(client.post("/classify", files=RED))
        loading.set()
        wait_ready(client)
        keep(client.post("/classify", files=RED, headers=named("wrong")))
        for _ in range(2):
            last = client.post("/classify", files=RED, headers=named(OTHER))
        keep(last)
        keep(client.post("/classify", content=b"", headers=JPEG))
        keep(client.post("/classify", content=b"x" * 100_001, headers=JPEG))
        keep(client.post("/classify", content=b"x", headers=JPEG))
        keep(client.post("/classify", content=plain("red")[:40], headers=JPEG))
        keep(client.post("/classify", files={"views": (None, b"ten")}))
        keep(client.post("/classify?top_k=many", files=RED))
        keep(client.post("/classify?views=paper", files=RED, headers={"X-Timeout-Ms": "1"}))
        keep(client.get("/nothing/here"))
        keep(client.get("/classify"))
    gate = Gate()
    with (
        service(lambda *_: fake_backend(gate, seconds_per_row=0.5, sizes=[1]), settings,
                headers=page) as client,
        ThreadPoolExecutor() as threads, gate.shut(),
    ):  # fmt: skip
        running = threads.submit(client.post, "/classify", files=RED)
        assert gate.entered.wait(10)
        keep(client.post("/classify", files=RED))
    assert running.result().status_code == 200
    for run in (failing, bug):
        with service(lambda *_, run=run: fake_backend(run), settings, headers=page,
                     raise_server_exceptions=False) as client:  # fmt: skip
            keep(client.post("/classify", files=RED))
    return found


CODES = {
    *("not_ready", "unauthorized", "rate_limited", "malformed", "too_large", "unsupported_type"),
    *("unreadable_image", "missing_file", "invalid_parameter", "deadline_exceeded", "not_found"),
    *("method_not_allowed", "overloaded", "inference_failed", "internal"),
}


def test_the_errors_are_all_there(refusals: dict[str, httpx2.Response]) -> None:
    assert refusals.keys() == CODES
    statuses = {answer.status_code for answer in refusals.values()}
    assert statuses == {400, 401, 404, 405, 413, 415, 422, 429, 500, 503, 504}


@pytest.mark.parametrize("code", sorted(CODES))
def test_no_error_tells_of_the_inside(code: str, refusals: dict[str, httpx2.Response]) -> None:
    answer = refusals[code]
    assert_problem(answer, answer.status_code, code)
    versions = [
        platform.python_version(),
        *(metadata.version(name) for name in ("googlenet-service", "torch", "uvicorn", "pillow")),
    ]
    told = f"{dict(answer.headers)} {answer.text}"
    for secret in (*versions, str(ROOT), str(Path.home()), ".py", "Traceback", "CUDA", "site-pack"):
        assert secret not in told
    assert not re.search(r"(?<![\w:/])/[a-z]+/[a-z]", answer.text), "a path"
    assert "server" not in answer.headers
    assert KEY not in told
    assert OTHER not in told


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_page_may_read_every_error(code: str, refusals: dict[str, httpx2.Response]) -> None:
    headers = refusals[code].headers
    assert headers["access-control-allow-origin"] == PAGE
    assert "Retry-After" in headers["access-control-expose-headers"]


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_is_named_and_protected(
    code: str, refusals: dict[str, httpx2.Response]
) -> None:
    headers = refusals[code].headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"]


# Security headers.


@pytest.mark.parametrize("path", ["/models", "/livez", "/metrics", "/openapi.json", "/docs"])
def test_every_answer_says_that_it_is_what_it_says_and_of_its_moment(
    path: str, client: TestClient
) -> None:
    answer = client.get(path, headers=named(KEY))
    assert answer.headers["x-content-type-options"] == "nosniff"
    is_page = path == "/docs"  # a file: the browser may keep it, and asks whether it changed
    assert answer.headers.get_list("cache-control") == ["no-cache" if is_page else "no-store"]
    for name in ("content-security-policy", "referrer-policy", "x-frame-options"):
        assert (name in answer.headers) is is_page


def test_a_classification_is_not_cached(client: TestClient) -> None:
    answer = client.post("/classify", files=RED, headers=named(KEY))
    assert answer.headers["cache-control"] == "no-store"


class Loads(HTMLParser):
    """Collects what a page loads, and what is inline in it."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: set[str] = set()
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a script, a style sheet or an image."""
        given = dict(attrs)
        url = given.get("src") or given.get("href")
        if url and url != "data:,":
            self.urls.add(url)
        elif tag in {"script", "style"}:
            self.inline += 1


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_may_load_its_files_and_not_be_framed(path: str, client: TestClient) -> None:
    answer = client.get(path)
    policy = {
        words[0]: words[1:]
        for words in (part.split() for part in answer.headers["content-security-policy"].split(";"))
    }
    loads = Loads()
    loads.feed(answer.text)
    assert len(loads.urls) >= 2
    assert loads.inline == 0
    for url in loads.urls:
        assert client.get(urljoin(path, url)).status_code == 200  # from ourselves, without a key
    assert policy["script-src"] == ["'self'"]
    assert "http" not in answer.headers["content-security-policy"]
    assert policy["connect-src"] == ["'self'"]  # the OpenAPI, and what it is tried out on
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"


# What is never returned, logged or cached.


def test_no_key_is_ever_logged(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", KEY, "3/day"), "utf-8")
    settings = Settings(model="fake", api_keys_file=file, cors_origins="*", log_level="debug")
    basic = f"Basic {'c2VjcmV0' * 4}"
    bodies = []
    with (
        caplog.at_level(logging.DEBUG),
        service(lambda *_: fake_backend(bug), settings, raise_server_exceptions=False) as client,
    ):
        file.write_text(f'[web]\nsha256 = "{OTHER}"\n', "utf-8")
        deadline = time.monotonic() + 10
        while "keeping the previous keys" not in caplog.text:
            assert time.monotonic() < deadline
            bodies.append(client.get("/livez", headers=named(OTHER)).text)
            time.sleep(0.05)
        for headers in (named(KEY), {"Authorization": f"Bearer {KEY}"}, named(OTHER),
                        {"Authorization": basic}, named(KEY), named(KEY)):  # fmt: skip
            bodies.append(client.post("/classify", files=RED, headers=headers).text)
            bodies.append(client.get("/models?secret=query", headers=headers).text)
    assert '"code":"internal"' in bodies[-12]
    assert '"code":"rate_limited"' in bodies[-1]
    told = [
        f"{record.getMessage()} {vars(record)}"
        for record in caplog.records
        if not record.name.startswith("httpx2")  # the test client's
    ]
    seen = "".join([*told, *bodies, *capsys.readouterr()])
    for secret in (KEY, OTHER, basic, basic.split()[1], "secret=query"):
        assert secret not in seen


@pytest.mark.parametrize(
    "name",
    [b"a\r\nX-Injected: 1", b"a\nb", "grün".encode(), "☃".encode(), b"\x00", b"a b", b"",
     b"<script>", b"a" * 129, b"a" * 1_000_000],
)  # fmt: skip
def test_a_name_that_is_none_is_replaced(
    name: bytes, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/models", "query_string": b"",
        "headers": [(b"x-request-id", name), (b"x-api-key", KEY.encode())],
    }  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        start = call(client, scope)
    ((_, ours),) = [header for header in start["headers"] if header[0] == b"x-request-id"]
    assert re.fullmatch(rb"[0-9a-f]{32}", ours)
    assert len(b"".join(b"".join(header) for header in start["headers"])) < 2000
    (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
    assert line["id"] == ours.decode()


FORWARDED = {
    "Forwarded": "for=6.6.6.6;host=evil.example;proto=https",
    "X-Forwarded-For": "127.0.0.1, 6.6.6.6",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/livez",
    "X-Forwarded-User": "admin",
    "X-Original-URL": "/livez",
    "X-Rewrite-URL": "/livez",
    "X-HTTP-Method-Override": "GET",
    "X-Real-IP": "127.0.0.1",
}


def test_forwarded_headers_of_a_client_change_nothing(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="service"):
        for headers, expected in (({}, 401), (named(KEY), 200)):
            plainly = client.get("/models", headers=headers)
            spoofed = client.get("/models", headers=headers | FORWARDED)
            assert plainly.status_code == spoofed.status_code == expected
            names = {"x-request-id", "content-length"}
            assert {k: v for k, v in plainly.headers.items() if k not in names} == {
                k: v for k, v in spoofed.headers.items() if k not in names
            }
            assert "evil" not in spoofed.text
    assert "6.6.6.6" not in str([vars(record) for record in caplog.records])


DIGITS = ["--model", "digits", "--device", "cpu", "--precision", "float32", "--max-batch", "1",
          "--cpu-threads", "1", "--timeout-seconds", "60"]  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a process that this test starts would write."""
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GOOGLENET_LOG_LEVEL", "debug")
    return tmp_path


def family(pid: int) -> list[int]:
    """Give a process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in below for one in family(int(child)))]


def written(pid: int) -> list[str]:
    """Name the regular files that a process has open for writing."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
        flags = int(re.search(r"flags:\s+(\d+)", info)[1], 8)  # type: ignore[index]  # it is there
        if fd.is_file() and flags & os.O_ACCMODE:
            found.append(str(fd.readlink()))
    return found


@contextmanager
def uploading(port: int, image: bytes) -> Iterator[None]:
    """Be amidst an upload that is never finished."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    form = {"Content-Type": FORM, "Content-Length": "9000000"}
    with closing(connection):
        connection.putrequest("POST", "/classify")
        for name, value in (named(KEY) | form).items():
            connection.putheader(name, value)
        connection.endheaders()
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        connection.send(head + image)
        yield


@pytest.mark.slow
def test_uploads_are_never_written_to_a_disk_nor_logged(elsewhere: Path) -> None:
    """The kernel refuses both processes every byte of every file; only pipes and sockets go on."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    camera = Image.Exif()
    camera[271] = "SecretCamera"  # the tag of who made it
    big = encoded(Image.fromarray(noise), exif=camera)  # 4 MB
    assert b"SecretCamera" in big
    with serving(*DIGITS, "--api-key-hashes", digests(web=KEY)) as ours:
        base = f"http://127.0.0.1:{ours.port}"
        with httpx2.Client(base_url=base, headers=named(KEY), timeout=60) as client:
            wait_ready(client)
            processes = family(ours.process.pid)
            assert len(processes) > 1
            for pid in processes:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
            before = sorted(elsewhere.rglob("*")), [written(pid) for pid in processes]
            answers = [
                client.post("/classify?views=single", files=parts(big, big, big)),
                client.post("/classify?views=single", content=big, headers=JPEG),
                client.post("/classify?views=single", content=iter([big[:9999], big[9999:]]),
                            headers=JPEG),
            ]  # fmt: skip
            with uploading(ours.port, big):
                assert client.get("/livez").status_code == 200
                during = [written(pid) for pid in processes]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all("predictions" in one for one in answers[0].json()["results"])
    assert (sorted(elsewhere.rglob("*")), during) == before
    log = "".join(ours.log)
    assert "POST /classify 200" in log
    assert '"level": "DEBUG"' in log
    for secret in ("SecretCamera", KEY):
        assert secret not in log
