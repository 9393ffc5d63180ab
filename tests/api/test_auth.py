"""Authentication, rate limits, CORS, security headers; no response or log leaks a key."""

import hashlib
import http.client
import logging
import os
import platform
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import httpx2
import numpy as np
import pytest
from conftest import ROOT, FakeBackend, fake_backend, serving, wait_ready
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message
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


def named(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def digests(**keys: str) -> str:
    """The value of the setting for these keys."""
    return ",".join(f"{name}:{sha256(key)}" for name, key in keys.items())


def table(name: str, key: str, *limits: str) -> str:
    """A key's entry in the file of keys."""
    return f'[{name}]\nsha256 = "{sha256(key)}"\nlimits = {[*limits]}\n'


RED = parts(plain("red"))


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


# Which requests need a key.


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
def test_a_valid_key_is_accepted(headers: dict[str, str], client: TestClient) -> None:
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


def start(
    client: TestClient, path: str, headers: Mapping[str, str | bytes] = MappingProxyType({}),
    root_path: str = "",
) -> Message:  # fmt: skip
    """Send a request that no HTTP client would send; returns the start of the response."""
    first, *_ = asgi(client, never, headers, method="GET", path=path, root_path=root_path)
    return first


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        *((path, "", 401) for path in (
            "//classify", "/livez/../classify", "/docs/", "/livez/", "/LIVEZ", "livez", "",
            "/docs/x", "/livez\x00", "/livez;/classify", "/models?/livez", "/classify/livez",
        )),
        ("/api/livez", "/api", 200),
        ("/api/models", "/api", 401),
    ],
)  # fmt: skip
def test_only_the_exact_open_paths_need_no_key(
    path: str, root: str, status: int, client: TestClient
) -> None:
    assert start(client, path, root_path=root)["status"] == status


def test_a_request_without_a_key_is_refused_before_its_body(client: TestClient) -> None:
    refused, *_ = asgi(client, never, {"content-type": FORM, "content-length": "100"})
    assert refused["status"] == 401


def test_the_key_is_checked_before_readiness() -> None:
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


def test_websockets_are_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/classify"):
        pass


def test_requests_are_counted_and_logged_by_the_name_of_their_key(
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


def until(holds: Callable[[], bool]) -> None:
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


LIMITS = ("2/hour", "3/day")


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[TestClient]:
    """A service in which one of two keys has limits."""
    file = tmp_path / "keys.toml"
    file.write_text(table("web", KEY, *LIMITS) + table("batch", OTHER), "utf-8")
    with service(lambda *_: fake_backend(), Settings(model="fake", api_keys_file=file)) as client:
        yield client


def remaining(response: httpx2.Response) -> list[int]:
    """The requests left by the hour and by the day."""
    assert response.headers["ratelimit-policy"] == '"hour";q=2;w=3600, "day";q=3;w=86400'
    left = re.fullmatch(
        r'"hour";r=(\d);t=3[56]\d\d, "day";r=(\d);t=86[34]\d\d', response.headers["ratelimit"]
    )
    assert left is not None
    return [int(text) for text in left.groups()]


def test_a_key_is_refused_over_its_limit_and_other_keys_are_not(limited: TestClient) -> None:
    ok = limited.post("/classify?views=single", files=RED, headers=named(KEY))
    assert limited.get("/readyz", headers=named(KEY)).status_code == 200  # probes do not count
    failed = limited.post("/classify", content=b"no image", headers=named(KEY) | JPEG)
    assert [(r.status_code, remaining(r)) for r in (ok, failed)] == [(200, [1, 2]), (415, [0, 1])]
    batches = counts(limited, "googlenet_batch_rows_count")
    stages = counts(limited, "googlenet_stage_duration_seconds_count")
    for _ in range(20):
        refused = limited.post("/classify", files=RED, headers=named(KEY))
        problem = assert_problem(refused, 429, "rate_limited")
        assert remaining(refused) == [0, 1]
        assert 3_590_000 - 60_000 < problem["retry_after_ms"] <= 3_600_000
        seconds = int(refused.headers["retry-after"])
        assert problem["retry_after_ms"] <= 1000 * seconds < problem["retry_after_ms"] + 1000
    unread, *_ = asgi(limited, never, {"x-api-key": KEY, "content-type": FORM})
    assert unread["status"] == 429  # before its body
    assert counts(limited, "googlenet_batch_rows_count") == batches
    assert counts(limited, "googlenet_stage_duration_seconds_count") == stages
    free = limited.post("/classify", files=RED, headers=named(OTHER))
    assert free.status_code == 200
    assert not {"ratelimit", "ratelimit-policy"} & free.headers.keys()


# From which pages.

PAGE, ELSE = "https://app.example", "https://evil.example"


@pytest.mark.parametrize("origins", [PAGE, f"http://localhost:3000,{PAGE}", "*"])
def test_an_allowed_page_gets_cors_headers_and_needs_no_key_for_a_preflight(origins: str) -> None:
    with service(lambda *_: fake_backend(), with_cors(origins)) as client:
        allowed = preflight(client, "authorization", "x-api-key", "content-type", "x-timeout-ms",
                            "inference-header-content-length")  # fmt: skip
        answer = client.post("/classify", files=RED, headers={**named(KEY), "Origin": PAGE})
        script = client.get("/models", headers=named(KEY))
    assert allowed.status_code == answer.status_code == script.status_code == 200
    for response in (allowed, answer):
        assert response.headers["access-control-allow-origin"] in {PAGE, "*"}
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["x-request-id"]
    assert allowed.headers["access-control-allow-methods"] == "GET, POST"
    assert {
        *("x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "server-timing"),
        "inference-header-content-length",
    } < {*answer.headers["access-control-expose-headers"].lower().split(", ")}


def with_cors(origins: str, **others: str) -> Settings:
    return GUARDED.model_copy(update={"cors_origins": origins, **others})


def preflight(client: TestClient, *headers: str, origin: str = PAGE) -> httpx2.Response:
    return client.options("/classify", headers={
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(headers),
    })  # fmt: skip


def test_a_page_that_is_traced_may_call() -> None:
    with service(lambda *_: fake_backend(), with_cors(PAGE)) as client:
        allowed = preflight(
            client, "content-type", "traceparent", "tracestate", "baggage", "sentry-trace",
            "x-requested-with", "priority",
        )  # fmt: skip
        answer = client.get("/models", headers={**named(KEY), "Origin": PAGE})
    assert (allowed.status_code, allowed.text) == (200, "OK")
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert "traceresponse" in exposed


def test_a_setting_names_more_headers_that_a_page_may_send() -> None:
    headers = "X-Datadog-Trace-Id", "X-B3-TraceId"
    for settings, status in (
        (with_cors(PAGE), 400),
        (with_cors(PAGE, cors_headers=",".join(headers)), 200),
    ):
        with service(lambda *_: fake_backend(), settings) as client:
            assert preflight(client, *headers, "traceparent").status_code == status
            assert preflight(client, "x-other").status_code == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cors_headers", value) for value in ("a b", "a,", ",", "X:y", "*")),
        *(("cors_origins", value) for value in (
            "", "app.example", "https://a/b", "https://a, https://b", "*,*")),
    ],
)  # fmt: skip
def test_an_invalid_cors_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.model_validate({name: value})


@pytest.mark.parametrize(
    ("settings", "origin", "status"), [(with_cors(PAGE), ELSE, 400), (GUARDED, PAGE, 401)]
)
def test_other_pages_get_no_cors_headers(settings: Settings, origin: str, status: int) -> None:
    with service(lambda *_: fake_backend(), settings) as client:
        refused = preflight(client, origin=origin)
        answer = client.get("/models", headers={**named(KEY), "Origin": origin})
    assert refused.status_code == status
    assert answer.status_code == 200  # it is the browser that keeps it from the page
    for response in (refused, answer):
        assert "access-control-allow-origin" not in response.headers


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
        views="ten",
        api_keys_file=file,
        cors_origins=PAGE,
        max_body_bytes=100_000,
        max_images_per_request=3,
        upload_timeout_seconds=0.5,
    )
    page = {"Origin": PAGE, **named(KEY)}
    refused: dict[str, httpx2.Response] = {}

    def keep(answer: httpx2.Response) -> None:
        refused[answer.json()["code"]] = answer

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
    return refused


CODES = {
    *("not_ready", "unauthorized", "rate_limited", "malformed", "too_large", "unsupported_type"),
    *("unreadable_image", "missing_file", "invalid_parameter", "deadline_exceeded", "not_found"),
    *("method_not_allowed", "overloaded", "inference_failed", "internal"),
}


def test_the_errors_are_all_there(refusals: dict[str, httpx2.Response]) -> None:
    assert refusals.keys() == CODES
    statuses = {answer.status_code for answer in refusals.values()}
    assert statuses == {400, 401, 404, 405, 413, 415, 422, 429, 500, 503, 504}
    assert refusals["internal"].json()["detail"] == "an internal error; it was logged"


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_error_shows_nothing_internal_and_has_all_headers(
    code: str, refusals: dict[str, httpx2.Response]
) -> None:
    answer = refusals[code]
    assert_problem(answer, answer.status_code, code)
    versions = [
        platform.python_version(),
        *(metadata.version(name) for name in ("googlenet-service", "torch", "uvicorn", "pillow")),
    ]
    shown = f"{dict(answer.headers)} {answer.text}"
    for secret in (*versions, str(ROOT), str(Path.home()), ".py", "Traceback", "CUDA", "site-pack",
                   KEY, OTHER):  # fmt: skip
        assert secret not in shown
    assert not re.search(r"(?<![\w:/])/[a-z]+/[a-z]", answer.text), "a path"
    assert "server" not in answer.headers
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]


# Security headers.


@pytest.mark.parametrize(
    "path", ["/models", "/livez", "/metrics", "/openapi.json", "/docs", "/classify"]
)
def test_every_response_has_security_headers(path: str, client: TestClient) -> None:
    if path == "/classify":
        answer = client.post(path, files=RED, headers=named(KEY))
    else:
        answer = client.get(path, headers=named(KEY))
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    is_page = path == "/docs"  # a file: the browser may keep it, and asks whether it changed
    assert answer.headers.get_list("cache-control") == ["no-cache" if is_page else "no-store"]
    for name in ("content-security-policy", "referrer-policy", "x-frame-options"):
        assert (name in answer.headers) is is_page


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_may_load_only_from_the_service_and_not_be_framed(
    path: str, client: TestClient
) -> None:
    answer = client.get(path)
    rules = map(str.split, answer.headers["content-security-policy"].split(";"))
    policy = {name: sources for name, *sources in rules}
    assert "http" not in answer.headers["content-security-policy"]
    # The OpenAPI document, and the requests that are tried out.
    assert policy["script-src"] == policy["connect-src"] == ["'self'"]
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

        def reloaded() -> bool:
            bodies.append(client.get("/livez", headers=named(OTHER)).text)
            return "keeping the previous keys" in caplog.text

        until(reloaded)
        for headers in (named(KEY), {"Authorization": f"Bearer {KEY}"}, named(OTHER),
                        {"Authorization": basic}, named(KEY), named(KEY)):  # fmt: skip
            bodies.append(client.post("/classify", files=RED, headers=headers).text)
            bodies.append(client.get("/models?secret=query", headers=headers).text)
    assert '"code":"internal"' in bodies[-12]
    assert '"code":"rate_limited"' in bodies[-1]
    logged = [
        f"{record.getMessage()} {vars(record)}"
        for record in caplog.records
        if not record.name.startswith("httpx2")  # the test client's
    ]
    output = "".join([*logged, *bodies, *capsys.readouterr()])
    for secret in (KEY, OTHER, basic, basic.split()[1], "secret=query"):
        assert secret not in output


@pytest.mark.parametrize(
    "sent",
    [b"a\r\nX-Injected: 1", b"a\nb", b"a\tb", "grün".encode(), "☃".encode(), b"\x00", b"a b", b"",
     b"<script>", b"a" * 129, b"a" * 1_000_000],
)  # fmt: skip
def test_an_invalid_request_id_is_replaced(
    sent: bytes, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = start(client, "/models", {"x-request-id": sent, "x-api-key": KEY})
    ((_, used),) = [header for header in response["headers"] if header[0] == b"x-request-id"]
    assert re.fullmatch(rb"[0-9a-f]{32}", used)
    assert len(b"".join(b"".join(header) for header in response["headers"])) < 2000
    (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
    assert line["id"] == used.decode()


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
    return [pid, *(number for child in below for number in family(int(child)))]


def written(pid: int) -> list[str]:
    """Name the regular files that a process has open for writing."""
    names = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        info = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
        flags = int(re.search(r"flags:\s+(\d+)", info)[1], 8)  # type: ignore[index]  # it is there
        if fd.is_file() and flags & os.O_ACCMODE:
            names.append(str(fd.readlink()))
    return names


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
    assert all("predictions" in result for result in answers[0].json()["results"])
    assert (sorted(elsewhere.rglob("*")), during) == before
    log = "".join(ours.log)
    assert "POST /classify 200" in log
    assert '"level": "DEBUG"' in log
    for secret in ("SecretCamera", KEY):
        assert secret not in log
