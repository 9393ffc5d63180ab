"""The HTTP server of a process: uvicorn, configured, and run until the process is signalled."""

import gc
import logging
import math
import socket
import ssl
from functools import partial

import uvicorn
from fastapi import FastAPI

from service.server.connection_limits import (
    Bounds,
    Connections,
    Ports,
    file_limit,
    most_connections,
)
from service.server.http_protocol import Connection
from service.server.uvicorn_server import Application, Server
from service.serving.metrics.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)

_COLLECT_AFTER = 20_000  # new objects; Python's 700 are those of a few requests
_PROBE_CONNECTIONS = 64  # reserved for probes and scrapes


class HttpServer:
    """Runs an application, which may ask it whether it is leaving, or stop it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: Server | None = None  # until it runs

    def is_leaving(self) -> bool:
        """Tell whether the process is stopping."""
        return self._server is not None and self._server.is_leaving

    def port(self) -> int:
        """Return the port of HTTP, on which the server listens before a model is loaded."""
        listening = self._server.servers if self._server else []
        ports = (listener.sockets[0].getsockname()[1] for listener in listening)
        return next(ports, 0)

    def stop(self) -> None:
        """Stop, without waiting for load balancers."""
        if self._server:
            self._server.should_exit = True

    def run(
        self,
        application: FastAPI,
        metrics: Metrics,
        sockets: list[socket.socket] | None,
        probes: socket.socket | None,
    ) -> None:
        """Serve on these sockets, by default on one of the settings' address, until signalled."""
        state = application.state
        hooks = Application(state.refresh, state.leave, state.serves)
        config = configure(self._settings, application, metrics)
        self._server = Server(config, self._settings.drain_seconds, probes, hooks)
        gc.collect()
        gc.freeze()  # objects made so far stay; collections need not traverse them
        gc.set_threshold(_COLLECT_AFTER)
        self._server.run(sockets)


def configure(settings: Settings, application: FastAPI, metrics: Metrics) -> uvicorn.Config:
    """Configure uvicorn; `Certificate.read` has checked the files of TLS."""
    most = most_connections(settings.max_connections, files=file_limit(), backlog=settings.backlog)
    if settings.max_connections > most:
        logger.warning("connections limited to %d by the limit of open files", most)
    ports = Ports(Connections(most), {settings.probe_port: Connections(_PROBE_CONNECTIONS)})
    metrics.connected(lambda: len(ports))
    bounds = Bounds(
        settings.header_timeout_seconds, settings.max_header_bytes, settings.send_timeout_seconds
    )
    return uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, bounds, ports, metrics),  # type: ignore[arg-type]  # only ever called
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),  # uvicorn takes whole seconds
        server_header=False,
        backlog=settings.backlog,
        forwarded_allow_ips=settings.trusted_proxies,
        root_path=settings.root_path or "",
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        ssl_ca_certs=settings.tls_client_ca_file,
        ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca_file else ssl.CERT_NONE,
    )
