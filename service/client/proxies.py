"""The environment's proxy for requests to a URL, if any.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read as curl reads them, except that
loopback addresses never go through a proxy, which could not reach them.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies

_PORTS = {"http": 80, "https": 443}


def proxy(url: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the URL of the proxy for `url`, or None where requests go directly.

    `environment` has proxies by `http`, `https` and `all`, and exceptions by `no`, as
    `urllib.request.getproxies` gives them.
    """
    settings = getproxies() if environment is None else environment
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # the request will fail with the reason
        return None
    chosen = settings.get(parts.scheme) or settings.get("all")
    if not chosen or _is_local(host) or _is_exempt(host, port, settings.get("no", "")):
        return None
    return chosen if "://" in chosen else f"http://{chosen}"


def redacted(proxy: str) -> str:
    """Return a proxy's URL without its user and password, for a message."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _is_local(host: str) -> bool:
    """Return whether a host name or address is loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _is_exempt(host: str, port: int | None, exceptions: str) -> bool:
    entries = filter(None, (entry.strip().lower() for entry in exceptions.split(",")))
    return any(_matches(entry, host, port) for entry in entries)


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of `NO_PROXY` (a domain, address or network) covers a host."""
    if entry == "*":
        return True
    address = _address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, entry_port = entry, ""
    if entry.count(":") == 1 or entry.startswith("["):  # an IPv6 address without a port has more
        name, _, entry_port = entry.partition("]:" if entry.startswith("[") else ":")
    if entry_port and entry_port != str(port):
        return False
    name = name.strip("[]").lstrip("*.")
    return host == name or host.endswith(f".{name}")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
