"""The client and proxies of the environment: this machine directly, and errors that name them."""

from typing import Any

import pytest
from test_client import GOOD, HOST, Ask, answered, ask, misbehaving

from service.client import Client, Failed, Unreachable, clients, proxies

__all__ = ["ask"]  # a fixture

SERVICE = "http://classify.example:8000"  # which only a proxy could reach


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


# Which proxy.


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "api.localhost", "127.0.0.1", "127.8.0.1", "[::1]",
        "[::ffff:127.0.0.1]", "0.0.0.0", "[::]",  # noqa: S104 - what servers print that listen on all
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_this_machine_is_asked_directly(scheme: str, host: str) -> None:
    found = {"http": "http://p:1", "https": "http://p:1", "all": "http://p:1"}
    assert proxies.proxy(f"{scheme}://{host}:8000/below", found) is None


@pytest.mark.parametrize(
    ("url", "found", "wanted"),
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
    url: str, found: dict[str, str], wanted: str | None
) -> None:
    assert proxies.proxy(url, found) == wanted


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
def test_exceptions_are_asked_directly(exceptions: str, url: str, direct: object) -> None:
    found = {"http": "http://p:1", "no": exceptions}
    assert (proxies.proxy(url, found) is None) == direct


def test_a_proxy_is_shown_without_its_password() -> None:
    assert proxies.shown("http://user:p@ss@p.example:3128") == "http://p.example:3128"
    assert proxies.shown("http://p.example:3128") == "http://p.example:3128"


# What the clients do with it.


@pytest.mark.parametrize("host", [HOST, "localhost"])
def test_a_proxy_in_the_environment_does_not_catch_this_machine(
    ask: Ask, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving() as (proxy, asked), misbehaving(GOOD) as (url, served):
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert ask(url.replace(HOST, host), "classify", b"image", timeout=5).best.label == "red"
    assert (len(asked), len(served)) == (0, 1)


def test_another_machine_is_asked_through_the_proxy(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving(GOOD) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert ask(SERVICE, "classify", b"image").best.label == "red"
    assert asked[0].startswith(f"POST {SERVICE}/classify ".encode())


@pytest.mark.parametrize(
    ("says", "detail"),
    [
        (answered(b"<html>", "502 Bad Gateway"), "the answer is 502, without a reason"),
        (answered(b"<html>", "200 OK"), "the answer is not what this service answers"),
    ],
)
def test_an_answer_that_is_not_the_services_names_the_proxy(
    ask: Ask, says: bytes, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with misbehaving(says) as (proxy, _):
        monkeypatch.setenv("http_proxy", proxy.replace("://", "://user:secret@"))
        with pytest.raises(Failed) as told:
            ask(SERVICE, "classify", b"image")
    assert told.value.detail == f"{detail}; it came through the proxy {proxy}"


def test_a_proxy_that_does_not_connect_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    url = SERVICE.replace("http:", "https:")
    with misbehaving(*[answered(b"", "403 Forbidden")] * 50) as (proxy, asked):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(Unreachable) as told:
            ask(url, "models", timeout=0.5)
    assert told.value.detail == (
        f"{url}, asked through the proxy {proxy}, does not answer: 403 Forbidden"
    )
    assert asked[0].startswith(b"CONNECT classify.example:8000 ")


def test_a_proxy_that_is_not_there_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"user:secret@{HOST}:9")
    with pytest.raises(Unreachable) as told:
        ask(SERVICE, "models", timeout=0.3)
    assert told.value.detail.startswith(
        f"{SERVICE}, asked through the proxy http://{HOST}:9, does not answer: "
    )


@pytest.mark.parametrize("proxy", ["gopher://p:1", "http://p:no"])
def test_a_proxy_that_cannot_be_used_is_told(
    ask: Ask, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ValueError, match=f"^the proxy {proxy} of the environment cannot be used:"):
        ask(SERVICE, "models")


def test_a_kind_of_proxy_without_its_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(**_: Any) -> None:
        raise ImportError("socksio is not installed")

    monkeypatch.setenv("all_proxy", "socks5://p:1")
    monkeypatch.setattr(clients.httpx2, "Client", lacking)
    with pytest.raises(ValueError, match="socks5://p:1 of the environment cannot be used: socksio"):
        Client(SERVICE)
