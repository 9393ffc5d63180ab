"""The gRPC server, in the event loop that serves HTTP."""

import asyncio
import logging
from typing import Self

import grpc
from grpc import aio

from service.api.grpc.service import Service
from service.api.tls import Certificate
from service.errors import CannotListen
from service.settings import Settings

logger = logging.getLogger(__name__)

_MAX_CALLS = 256  # at once; few of them at a time are received
_PING_MS = 1000  # milliseconds between pings; a client that pings more often is disconnected


class Listening:
    """Listens while it is entered, until `leave`; with a certificate, over TLS.

    Raises `CannotListen`.
    """

    def __init__(
        self, service: Service, settings: Settings, certificate: Certificate | None = None
    ) -> None:
        self._service, self._settings, self._certificate = service, settings, certificate
        self._server: aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._server = _bound(self._service, self._settings, self._certificate)
        await self._server.start()
        how = "over TLS" if self._certificate else "without TLS"
        logger.info(
            "gRPC listens on port %d of %s, %s", self._settings.grpc_port, self._settings.host, how
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
        if self._stopping:
            await self._stopping

    def leave(self) -> None:
        """Accept no more calls; those in flight have the grace time to end."""
        if self._server and not self._stopping:
            self._service.end_streams()
            stop = self._server.stop(self._settings.grace_seconds)
            self._stopping = asyncio.get_running_loop().create_task(stop)


def _bound(service: Service, settings: Settings, certificate: Certificate | None) -> aio.Server:
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_metadata_size", settings.max_header_bytes),
            ("grpc.max_connection_idle_ms", settings.keep_alive_seconds * 1000),
            # Clients ping every 10 s or so to keep a NAT open; the default is 300 s.
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            # With one process, a second server would share the port unnoticed.
            ("grpc.so_reuseport", int(settings.api_processes > 1)),
        ],
        maximum_concurrent_rpcs=_MAX_CALLS,
    )
    server.add_generic_rpc_handlers(service.handlers())
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if certificate:
            server.add_secure_port(address, _credentials(certificate))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(
            f"cannot bind port {settings.grpc_port} of {settings.host} for gRPC"
        ) from error
    return server


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(certificate.key, certificate.chain)],
        certificate.client_authorities,
        require_client_auth=certificate.client_authorities is not None,
    )
