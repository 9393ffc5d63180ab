"""Listening sockets: of probes, and of an address for both IPv4 and IPv6."""

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from service.errors import CannotListen
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Listeners:
    """The listening sockets of an API process."""

    http: socket.socket
    probes: socket.socket | None


@contextmanager
def probes(settings: Settings) -> Iterator[socket.socket | None]:
    """Listen on the probe port, if there is one; raises `CannotListen`.

    Also raises it if the gRPC port is taken; gRPC binds that port itself.
    """
    _check_free(settings.host, settings.grpc_port, "gRPC")
    if not settings.probe_port:
        yield None
        return
    with _listen(settings.host, settings.probe_port, "probes") as listener:
        yield listener


@contextmanager
def dual_stack(settings: Settings) -> Iterator[list[socket.socket] | None]:
    """Listen for HTTP on IPv4 and IPv6 if the host is `::`; raises `CannotListen`.

    Yields None for other hosts, on which uvicorn listens. Its own socket for `::` would be for IPv6
    alone, while gRPC's is for both.
    """
    if not _is_dual_stack(settings.host):
        yield None
        return
    with _listen(settings.host, settings.port, "HTTP") as listener:
        yield [listener]


@contextmanager
def shared(settings: Settings) -> Iterator[Sequence[Listeners]]:
    """Listen for each API process on the same ports; the kernel spreads connections over them.

    Each has a queue of its own, which outlives the process: the one that replaces it goes on with
    it. Raises `CannotListen`.
    """
    with ExitStack() as stack:
        _check_free(settings.host, settings.grpc_port, "gRPC")
        # A second service that shares its ports would share these, unnoticed.
        _check_free(settings.host, settings.port, "HTTP")
        _check_free(settings.host, settings.probe_port, "probes")
        http = stack.enter_context(_listen(settings.host, settings.port, "HTTP", reuse=True))
        port, listeners = http.getsockname()[1], []
        for number in range(settings.api_processes):
            own, probes = http, None
            if number:
                own = stack.enter_context(_listen(settings.host, port, "HTTP", reuse=True))
            if settings.probe_port:
                listener = _listen(settings.host, settings.probe_port, "probes", reuse=True)
                probes = stack.enter_context(listener)
            listeners.append(Listeners(own, probes))
        yield listeners


def _check_free(host: str, port: int, purpose: str) -> None:
    """Raise `CannotListen` if a port other than 0 is taken, by sockets that share it as well."""
    if port:
        _listen(host, port, purpose).close()


def _is_dual_stack(host: str) -> bool:
    """Return whether an address is `::` on a machine whose sockets can be for IPv4 and IPv6."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_unspecified and socket.has_dualstack_ipv6()


def _listen(host: str, port: int, purpose: str, *, reuse: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port),
            family=family,
            dualstack_ipv6=_is_dual_stack(host),
            reuse_port=reuse,
        )
    except OSError as error:
        message = f"cannot bind port {port} of {host} for {purpose}: {error.strerror}"
        raise CannotListen(message) from error
