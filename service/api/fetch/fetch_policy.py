"""The policy of fetching: which hosts, ports and addresses images may come from."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service.api.fetch.image_url import ImageUrl
from service.errors import FetchRefused
from service.fetch_settings import Network, networks
from service.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.IPv6Network("2000::/3")  # all global unicast that IANA has given out
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_NOT_PUBLIC = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's host, which every machine there reaches
    ipaddress.IPv4Network("192.0.0.0/24"),  # RFC 6890; Python 3.11 knows parts of it only
)


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Allows public addresses and those of `networks`, if host and port are allowed, too."""

    hosts: Sequence[str] = ()  # `*.example.org` is any below it; none: any host
    ports: frozenset[int] = frozenset({80, 443})
    networks: Sequence[Network] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Give the policy of these settings."""
        hosts = settings.fetch_images_from
        return cls(
            [host.strip("[]") for host in hosts.split(",")] if hosts else (),
            frozenset(map(int, settings.fetch_images_ports.split(","))),
            networks(settings.fetch_images_networks),
        )

    def check(self, url: ImageUrl) -> None:
        """Raise `FetchRefused` for a host or a port that is not allowed."""
        if url.port not in self.ports:
            allowed = ", ".join(map(str, sorted(self.ports)))
            raise FetchRefused(f"images are not fetched from this port, only from {allowed}")
        if self.hosts and not any(_matches(url.host, pattern) for pattern in self.hosts):
            raise FetchRefused("images are not fetched from this host")

    def allows(self, address: str) -> bool:
        """Tell whether an IP address may be connected to."""
        meant = _meant(ipaddress.ip_address(address))
        return _is_public(meant) or any(meant in network for network in self.networks)


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _meant(address: Address) -> Address:
    """Give the IPv4 address that packets to an IPv6 address end at, if it has one in it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo or address


def _is_public(address: Address) -> bool:
    """Tell whether an address is of the public internet, and of one host."""
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST and address.is_global
    is_special = address.is_multicast or any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not is_special
