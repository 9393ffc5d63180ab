"""The serve command: HTTP, and gRPC beside it, until the process is signalled."""

import gc
import ipaddress
import logging
import math
import os
import ssl
import sys
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.api.tls import Certificate
from service.errors import Unreachable, WrongOption
from service.models import store
from service.models.store import Store
from service.server import (
    app,
    listeners,
    log_config,
    unknown_variables,
    weights_download,
    welcome,
)
from service.server.connection_limits import (
    Bounds,
    Connections,
    Ports,
    file_limit,
    most_connections,
)
from service.server.http_protocol import Connection
from service.server.uvicorn_server import Application, Server
from service.serving.backend import Backend
from service.serving.metrics.metrics import Metrics
from service.settings import Settings
from service.worker import client

logger = logging.getLogger(__name__)

_PROBE_CONNECTIONS = 64  # reserved for probes and scrapes


class _Startup:
    """Load backends, and stop the server when one that it cannot serve without fails."""

    server: Server

    def __init__(self, settings: Settings, model_store: Store) -> None:
        self._settings = settings
        self._store = model_store
        self._required = {*settings.served} - ({settings.shadow} - {settings.model})
        self._unserved = {*self._required}
        self.has_failed = False

    def load(self, settings: Settings, cancelled: Future[None]) -> Backend:
        """Load a model, downloading it first; stops the server if it was to be served at start."""
        try:
            if settings.download_weights:  # of additional models, or loaded later
                weights_download.download_missing(self._store, settings.models, cancelled)
            backend = client.load(settings, cancelled)
        except Exception:
            if settings.model in self._required and not cancelled.done():
                self._fail()
            raise
        self._required.discard(settings.model)
        return backend

    def gave_up(self, name: str) -> None:
        """Stop the server: a restart of the process may do what restarts of the worker did not."""
        if name != self._settings.shadow:
            self._fail()

    def serves(self, names: Collection[str]) -> None:
        """Say on a terminal how to use the service, once every required model serves."""
        if self._unserved and self._unserved <= {*names}:
            self._unserved.clear()
            if log_config.is_for_people(self._settings):
                # It listens since long before a worker has loaded: there is a socket.
                port = self.server.servers[0].sockets[0].getsockname()[1]
                sys.stderr.write(welcome.text(self._settings, port, self._store))

    def _fail(self) -> None:
        self.has_failed = True
        self.server.should_exit = True


def serve(settings: Settings, _: dict[str, Any]) -> int:
    """Serve until the process is signalled; downloads missing weights first."""
    log_config.configure(settings)
    certificate = check(settings)
    model_store = store.locate(settings.model_store)
    if settings.download_weights and (
        status := weights_download.download_first(model_store, settings.models)
    ):
        if settings.require_model or status != Unreachable.exit_status:
            return status
        logger.warning("cannot download %s, serving the bundled model", settings.model)
        settings = settings.model_copy(update={"model": store.BUNDLED})
    metrics, startup = Metrics(), _Startup(settings, model_store)
    application = app.create_app(
        settings,
        load=startup.load,
        is_leaving=lambda: startup.server.is_leaving,
        metrics=metrics,
        certificate=certificate,
        gave_up=startup.gave_up,
        serves=startup.serves,
    )
    config = configure(settings, application, metrics)
    with (
        listeners.probes(settings) as probe_listener,
        listeners.dual_stack(settings) as sockets,
    ):
        state = application.state
        hooks = Application(state.refresh, state.leave, state.serves)
        startup.server = Server(config, settings.drain_seconds, probe_listener, hooks)
        gc.collect()
        gc.freeze()  # objects made so far stay; collections need not traverse them
        startup.server.run(sockets)
    return int(startup.has_failed)


def check(settings: Settings) -> Certificate | None:
    """Read the certificate; raises `WrongOption` for settings and variables that are wrong."""
    unknown_variables.check(os.environ, is_strict=settings.require_model)
    _check_proxies(settings.trusted_proxies)
    return Certificate.read(settings)


def _check_proxies(trusted: str) -> None:
    """Raise `WrongOption` for an invalid address or network, which uvicorn would ignore."""
    for network in trusted.split(",") if trusted not in {"", "*"} else ():
        try:
            ipaddress.ip_network(network.strip())
        except ValueError as error:
            raise WrongOption(f"--trusted-proxies: {error}") from error


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
