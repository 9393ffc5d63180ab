"""The client and the environment's proxies: which are used, and errors that name them."""

from typing import Any

import httpx2
import pytest
from test_client import GOOD, HOST, Ask, answered, ask, misbehaving

from service.client import Client, Failed, Unreachable, proxies

__all__ = ["ask"]  # a fixture

SERVICE = "http://classify.example:8000"  # reachable through a proxy only


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


# The choice of a proxy.


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "api.localhost", "127.0.0.1", "127.8.0.1", "[::1]",
        "[::ffff:127.0.0.1]", "0.0.0.0", "[::]",  # noqa: S104 - what servers print that listen on all
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_loopback_uses_no_proxy(scheme: str, host: str) -> None:
    settings = {"http": "http://p:1", "https": "http://p:1", "all": "http://p:1"}
    assert proxies.proxy(f"{scheme}://{host}:8000/below", settings) is None


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        ("http://host", {"http": "http://p:1", "all": "http://q:1"}, "http://p:1"),
        ("https://host", {"http": "http://p:1", "all": "http://q:1"}, "http://q:1"),
        ("https://host", {"http": "http://p:1"}, None),
        ("http://host", {"http": "p:1"}, "http://p:1"),
        ("http://10.0.0.1", {"http": "http://p:1"}, "http://p:1"),
        ("http://localhost.example", {"http": "http://p:1"}, "http://p:1"),
        ("http://host", {"http": ""}, None),
        ("http://host", {}, None),
        ("http://host:no", {"http": "http://p:1"}, None),
        ("host:1", {"http": "http://p:1"}, None),
    ],
)
def test_a_proxy_is_chosen_by_the_scheme(
    url: str, settings: dict[str, str], expected: str | None
) -> None:
    assert proxies.proxy(url, settings) == expected


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("*", "http://any.example", True),
        ("a.example, b.example", "http://b.example", True),
        ("example", "http://b.example", True),
        (".example", "http://b.example", True),
        ("*.example", "http://b.example", True),
        ("B.Example", "http://b.example", True),
        ("ample", "http://b.example", False),
        ("b.example:80", "http://b.example", True),
        ("b.example:8000", "http://b.example", False),
        ("b.example:8000", "http://b.example:8000", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.1/8", "http://11.1.2.3", False),
        ("10.0.0.0/8", "http://b.example", False),
        ("10.0.0.0/99", "http://10.1.2.3", False),
        ("10.1.2.3", "http://10.1.2.3:8000", True),
        ("fd00::1", "http://[fd00::1]:8000", True),
        ("[fd00::1]", "http://[fd00::1]:8000", True),
        ("[fd00::1]:8000", "http://[fd00::1]:8000", True),
        ("[fd00::1]:9", "http://[fd00::1]:8000", False),
        ("fd00::/8", "http://[fd00::1]:8000", True),
        (",, ,", "http://b.example", False),
    ],
)
def test_no_proxy_exceptions(exceptions: str, url: str, direct: object) -> None:
    settings = {"http": "http://p:1", "no": exceptions}
    assert (proxies.proxy(url, settings) is None) == direct


def test_a_redacted_proxy_has_no_password() -> None:
    assert proxies.redacted("http://user:p@ss@p.example:3128") == "http://p.example:3128"
    assert proxies.redacted("http://p.example:3128") == "http://p.example:3128"


# Requests.


@pytest.mark.parametrize("host", [HOST, "localhost"])
def test_requests_to_loopback_are_direct(
    ask: Ask, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving() as (proxy, asked), misbehaving(GOOD) as (url, served):
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert ask(url.replace(HOST, host), "classify", b"image", timeout=5).best.label == "red"
    assert (len(asked), len(served)) == (0, 1)


def test_requests_to_other_hosts_use_the_proxy(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with misbehaving(GOOD) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert ask(SERVICE, "classify", b"image").best.label == "red"
    assert asked[0].startswith(f"POST {SERVICE}/classify ".encode())


@pytest.mark.parametrize(
    ("says", "detail"),
    [
        (
            answered(b"<html>", "502 Bad Gateway"),
            "the response has status 502 and no error message",
        ),
        (answered(b"<html>", "200 OK"), "the response is not one of this service"),
    ],
)
def test_an_invalid_response_names_the_proxy(
    ask: Ask, says: bytes, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving(says) as (proxy, _):
        monkeypatch.setenv("http_proxy", proxy.replace("://", "://user:secret@"))
        with pytest.raises(Failed) as raised:
            ask(SERVICE, "classify", b"image")
    assert raised.value.detail == f"{detail}; it came through the proxy {proxy}"


def test_a_proxy_that_refuses_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    url = SERVICE.replace("http:", "https:")
    with misbehaving(*[answered(b"", "403 Forbidden")] * 50) as (proxy, asked):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(Unreachable) as raised:
            ask(url, "models", timeout=0.5)
    assert raised.value.detail == (
        f"cannot connect to {url} through the proxy {proxy}: 403 Forbidden"
    )
    assert asked[0].startswith(b"CONNECT classify.example:8000 ")


def test_an_unreachable_proxy_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"user:secret@{HOST}:9")
    with pytest.raises(Unreachable) as raised:
        ask(SERVICE, "models", timeout=0.3)
    assert raised.value.detail.startswith(
        f"cannot connect to {SERVICE} through the proxy http://{HOST}:9: "
    )


@pytest.mark.parametrize("proxy", ["gopher://p:1", "http://p:no"])
def test_an_unusable_proxy_raises(ask: Ask, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ValueError, match=f"^cannot use the environment's proxy {proxy}: "):
        ask(SERVICE, "models")


def test_a_missing_proxy_library_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(**_: Any) -> None:
        raise ImportError("socksio is not installed")

    monkeypatch.setenv("all_proxy", "socks5://p:1")
    monkeypatch.setattr(httpx2, "Client", lacking)
    with pytest.raises(ValueError, match="proxy socks5://p:1: socksio"):
        Client(SERVICE)
