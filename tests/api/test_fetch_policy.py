"""URLs and addresses of images: every trick that is known to reach what should not be reached."""

import pytest

from service.api.fetch.fetch_policy import FetchPolicy
from service.api.fetch.image_url import MOST_CHARACTERS, ImageUrl
from service.errors import FetchRefused
from service.fetch_settings import networks
from service.settings import Settings

PUBLIC = FetchPolicy()


@pytest.mark.parametrize(
    ("text", "url", "authority"),
    [
        ("https://example.org/a.jpg", ("https", "example.org", 443, "/a.jpg"), "example.org"),
        ("HTTPS://Example.ORG", ("https", "example.org", 443, "/"), "example.org"),
        ("http://example.org?a=b/c?d", ("http", "example.org", 80, "/?a=b/c?d"), "example.org"),
        ("http://example.org:443/%41#b", ("http", "example.org", 443, "/%41"), "example.org:443"),
        ("http://store/a_(1).jpg", ("http", "store", 80, "/a_(1).jpg"), "store"),
        ("http://a_b.xn--bcher-kva.de/", ("http", "a_b.xn--bcher-kva.de", 80, "/"), None),
        ("http://example.org/@127.0.0.1", ("http", "example.org", 80, "/@127.0.0.1"), None),
        ("http://example.org#@127.0.0.1/", ("http", "example.org", 80, "/"), None),
        ("http://127.0.0.1#@example.org/", ("http", "127.0.0.1", 80, "/"), None),
        ("http://8.8.8.8:80/", ("http", "8.8.8.8", 80, "/"), "8.8.8.8"),
        ("http://[2001:DB8:0::1]:80/", ("http", "2001:db8::1", 80, "/"), "[2001:db8::1]"),
    ],
)
def test_a_url_has_one_meaning(
    text: str, url: tuple[str, str, int, str], authority: str | None
) -> None:
    parsed = ImageUrl.parse(text)
    assert (parsed.scheme, parsed.host, parsed.port, parsed.target) == url
    assert parsed.authority == (authority or url[1])


REFUSED = {
    "begin with https": (
        *("file:///etc/passwd", "gopher://example.org/_x", "ftp://example.org/a.jpg"),
        *("data:image/png;base64,aaaa", "javascript:alert(1)", "dict://example.org:80/"),
        *("", "//example.org/", "example.org/a.jpg", "/a.jpg", " http://example.org/"),
        *("http:example.org", "http:/example.org", r"http:\\example.org", "https+a://example.org"),
        *("\thttp://example.org/", "\uff48ttp://example.org/", "http//example.org"),
    ),
    "percent-encoded": (
        *(r"http://example.org\@127.0.0.1/", r"http://127.0.0.1\.example.org/", "http://a b/"),
        *("http://example.org/a b", "http://example.org/\r\nHost: a", "http://exam\nple.org/"),
        *("http://example.org\t/", "http://example.org/\x00", "http://example.org/a.jpg "),
        *("http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://127\uff0e0.0.1/", "http://bücher.de/"),
        *("http://example.org/ü.jpg", "http://\uff1127.0.0.1/", "http://exa\u00admple.org/"),
    ),
    "user name or a password": (
        *("http://good@127.0.0.1/", "http://a:b@example.org/", "http://@example.org/"),
        *("http://example.org:80@127.0.0.1/", "http://example.org&@127.0.0.1/", "http://a@b@c/"),
    ),
    "invalid IP address": (
        *("http://2130706433/", "http://0x7f000001/", "http://0x7F.0.0.1/", "http://017700000001/"),
        *("http://127.1/", "http://127.0.1/", "http://0177.0.0.1/", "http://127.0.0.01/"),
        *("http://0/", "http://0x/", "http://127.0.0.0x1/", "http://256.0.0.1/", "http://1.2.3.4.5/"),
        *("http://example.1/", "http://[1.2.3.4]/", "http://[:::1]/"),
    ),
    "invalid host or port": (
        *("http:///a.jpg", "http://:80/", "http://example.org:/", "http://example.org:0/"),
        *("http://example.org:65536/", "http://example.org:80:80/", "http://example.org:-1/"),
        *("http://127.0.0.1./", "http://example.org./", "http://.example.org/", "http://a..b/"),
        *("http://-a.org/", "http://%31%32%37.0.0.1/", "http://[::1", "http://[]/"),
        *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1]a/", "http://[::1]:x/"),
        *(f"http://{'a' * 64}.org/", f"http://{'a.' * 127}org/", "http://a,b/", "http://::1/"),
    ),
    "characters": (f"http://example.org/{'a' * MOST_CHARACTERS}",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("why", "text"), [(why, text) for why, texts in REFUSED.items() for text in texts]
)
def test_a_url_of_two_meanings_or_of_another_kind_is_refused(why: str, text: str) -> None:
    with pytest.raises(FetchRefused, match=why):
        ImageUrl.parse(text)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("b.jpg", "https://example.org/a/b.jpg"),
        ("/b.jpg?c", "https://example.org/b.jpg?c"),
        ("//other.org/b.jpg", "https://other.org/b.jpg"),
        ("https://other.org:8443/", "https://other.org:8443/"),
    ],
)
def test_a_redirect_may_be_relative(location: str, target: str) -> None:
    url = ImageUrl.parse("https://example.org/a/a.jpg")
    assert url.redirected(location) == ImageUrl.parse(target)


@pytest.mark.parametrize(
    "location",
    [
        "http://example.org/",
        "file:///etc/passwd",
        "data:,a",
        "//a@127.0.0.1/",
        "http://[",
        "/ü",
        r"\\a",
    ],
)
def test_a_redirect_to_less_is_refused(location: str) -> None:
    with pytest.raises(FetchRefused):
        ImageUrl.parse("https://example.org/").redirected(location)
    assert ImageUrl.parse("http://example.org/").redirected("https://example.org/").port == 443


NOT_PUBLIC = (
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1"),  # noqa: S104
    *("172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254"),
    *("169.254.170.2", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("2001:db8::1", "100::1", "::127.0.0.1", "4000::1", "2001:2::1"),
    # IPv4 in IPv6: mapped, NAT64 (also a network's own), 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::"),
    *("2002:a9fe:a9fe::1", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
)  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not PUBLIC.allows(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "172.32.0.1", "100.128.0.1", "192.88.0.1", "2606:4700::1111", "2a00::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
        "2001:0:4136:e378:8000:63bf:f7f7:f7f7",
    ],
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert PUBLIC.allows(address)


def test_networks_are_allowed_beside_public_addresses() -> None:
    inside = FetchPolicy(networks=networks("10.1.0.0/16,fd00::/64"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::5", "8.8.8.8"):
        assert inside.allows(address)
    for address in ("10.2.0.1", "fd00:1::5", "127.0.0.1", "::1"):
        assert not inside.allows(address)


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://example.org/", True),
        ("https://EXAMPLE.org:8443/", True),
        ("https://a.b.example.net/", True),
        ("https://[2606:4700:0::1]/", True),
        ("https://example.net/", False),
        ("https://badexample.net/", False),
        ("https://a.example.org/", False),
        ("https://example.org.evil.net/", False),
        ("http://example.org/", False),
        ("https://example.org:22/", False),
    ],
)
def test_hosts_and_ports_are_those_of_the_settings(url: str, *, is_allowed: bool) -> None:
    hosts = "example.org,*.example.net,[2606:4700::1]"
    settings = Settings(fetch_images_from=hosts, fetch_images_ports="443,8443")
    policy = FetchPolicy.of(settings)
    if is_allowed:
        policy.check(ImageUrl.parse(url))
    else:
        with pytest.raises(FetchRefused, match="images are not fetched from this"):
            policy.check(ImageUrl.parse(url))


def test_without_settings_any_host_is_allowed_on_the_ports_of_the_web() -> None:
    policy = FetchPolicy.of(Settings())
    policy.check(ImageUrl.parse("http://example.org/"))
    with pytest.raises(FetchRefused, match="only from 80, 443"):
        policy.check(ImageUrl.parse("http://example.org:22/"))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"fetch_images_networks": it} for it in ("10.1", "10.0.0.1/8", "10.0.0.0/8,")),
        *({"fetch_images_from": it} for it in ("a,", "http://a", "*", "a b")),
        *({"fetch_images_ports": it} for it in ("", "http", "80,")),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]
