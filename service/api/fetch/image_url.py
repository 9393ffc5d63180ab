"""The URL of an image, parsed strictly: what two programs may read differently is refused."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urljoin

from service.errors import FetchRefused

MOST_CHARACTERS = 2048  # of a URL
_PORTS = {"http": 80, "https": 443}

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")  # RFC 3986, 2
_URL = re.compile(
    r"""(?P<scheme>https?)://
    (?P<host>\[[0-9a-f:.]+\] | [a-z0-9._-]{1,253})
    (:(?P<port>[0-9]{1,5}))?
    (?P<target>(/[^?#]*)?(\?[^#]*)?)
    (\#.*)?""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")  # what browsers take for an IPv4 address


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A URL of HTTP, without credentials: what is asked of which host."""

    scheme: str  # http or https
    host: str  # a name in lower case, or an address as `ipaddress` writes it
    port: int
    target: str  # path and query

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL, without its fragment; raises `FetchRefused`."""
        if len(text) > MOST_CHARACTERS:
            raise FetchRefused(f"the URL has over {MOST_CHARACTERS} characters")
        if not (scheme := _SCHEME.match(text)):
            raise FetchRefused("the URL has to begin with https:// or http://")
        if not _CHARACTERS.fullmatch(text):
            raise FetchRefused(
                "the URL has characters that must be percent-encoded, or in a host punycode"
            )
        if "@" in re.split("[/?#]", text[scheme.end() :], maxsplit=1)[0]:
            raise FetchRefused("the URL has a user name or a password; send it without")
        if not (match := _URL.fullmatch(text)):
            raise FetchRefused("the URL has an invalid host or port")
        kind = match["scheme"].lower()
        port = int(match["port"] or _PORTS[kind])
        if not 0 < port < 1 << 16:
            raise FetchRefused("the URL has an invalid host or port")
        target = match["target"]
        path = target if target.startswith("/") else f"/{target}"
        return cls(kind, _host(match["host"].lower()), port, path)

    @property
    def authority(self) -> str:
        """Give host and port as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def redirected(self, location: str) -> Self:
        """Resolve the `Location` of a redirect; raises `FetchRefused`, also from https to http."""
        if not location:
            raise FetchRefused("the URL redirects to nowhere")
        try:
            text = urljoin(f"{self.scheme}://{self.authority}{self.target}", location)
        except ValueError as error:
            raise FetchRefused("the URL redirects to an invalid one") from error
        url = self.parse(text)
        if self.scheme == "https" != url.scheme:
            raise FetchRefused("the URL redirects from https to http")
        return url


def _host(host: str) -> str:
    """Check a name, or an address in its one usual form; raises `FetchRefused`."""
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if _NUMBER.fullmatch(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise FetchRefused("the URL has an invalid IP address as its host") from error
    if not _NAME.fullmatch(host):
        raise FetchRefused("the URL has an invalid host or port")
    return host
