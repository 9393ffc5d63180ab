"""The command that serves: over HTTP, until it is told to stop."""

import gc
import ipaddress
import logging
import math
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from service import python_process
from service.api.grpc.tls import Certificate
from service.errors import CannotListen, InferenceFailed, Unreachable, WrongOption
from service.models import store
from service.models.store import Store
from service.server import app, log_config, uvicorn_options
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

_BACKLOG = 2048  # uvicorn's
_PROBES = 64  # connections of those that probe and scrape, whatever the others do


def serve(settings: Settings, given: dict[str, Any]) -> int:
    """Serve over HTTP until told to stop; fetches what is missing of the model first."""
    passed = uvicorn_options.parse(given["uvicorn"])
    log_config.configure(settings)
    where = store.locate(settings.model_store)
    if settings.download_weights and (status := _fetch_first(where, settings.models)):
        if settings.require_model or status != Unreachable.exit_status:
            return status
        logger.warning("%s cannot be fetched; the bundled model is served", settings.model)
        settings = settings.model_copy(update={"model": store.BUNDLED})
    awaited = {*settings.served} - ({settings.shadow} - {settings.model})
    failures: list[Exception] = []

    def load(chosen: Settings, cancelled: Future[None]) -> Backend:
        try:
            if settings.download_weights:  # one that is served beside it, or was asked for since
                _fetch_missing(where, chosen.models, cancelled)
            backend = client.load(chosen, cancelled)
        except Exception as error:
            if chosen.model in awaited and not cancelled.done():
                failures.append(error)
                server.should_exit = True  # without what it is to serve it has nothing to stay for
            raise
        awaited.discard(chosen.model)
        return backend

    def gave_up(name: str) -> None:
        if name != settings.shadow:
            failures.append(InferenceFailed(f"the worker of {name} ends again and again"))
            server.should_exit = True  # whatever restarts this process may do better

    metrics = Metrics()
    ours = app.create_app(
        settings,
        load=load,
        is_leaving=lambda: server.is_leaving,
        metrics=metrics,
        certificate=Certificate.read(passed) if settings.grpc_port else None,
        gave_up=gave_up,
    )
    config = configure(settings, passed, ours, metrics)
    with listening(settings) as probes, every_address(settings, passed) as sockets:
        state = ours.state
        application = Application(state.refresh, state.leave, state.serves)
        server = Server(config, settings.drain_seconds, probes, application)
        gc.collect()
        gc.freeze()  # what is there stays there: looking through it again and again costs time
        server.run(sockets)
    return 1 if failures else 0


def configure(
    settings: Settings, passed: dict[str, Any], ours: FastAPI, metrics: Metrics
) -> uvicorn.Config:
    """Tell uvicorn what to serve and how; raises `WrongOption` if it cannot be as was passed."""
    backlog = passed.get("backlog", _BACKLOG)
    most = most_connections(settings.max_connections, files=file_limit(), backlog=backlog)
    if settings.max_connections > most:
        logger.warning("at most %d connections, for no more files may be open", most)
    ports = Ports(Connections(most), {settings.probe_port: Connections(_PROBES)})
    metrics.connected(lambda: len(ports))
    bounds = Bounds(
        settings.header_timeout_seconds, settings.max_header_bytes, settings.send_timeout_seconds
    )
    defaults: dict[str, Any] = {"server_header": False, "backlog": _BACKLOG}
    config = uvicorn.Config(
        ours,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, bounds, ports, metrics),  # type: ignore[arg-type]  # it is only called
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),  # whole seconds, for uvicorn
        **(defaults | passed),
    )
    if config.is_ssl and not config.ssl_certfile:
        raise WrongOption("uvicorn: --ssl-keyfile is for a certificate; give --ssl-certfile too")
    try:
        config.load()
    except OSError as error:
        raise WrongOption(f"uvicorn: the certificate or its key cannot be read: {error}") from error
    return config


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket | None]:
    """Listen on the port for probes, if there is one; raises `CannotListen`.

    Raises it also if the port for gRPC is taken, on which gRPC has to listen itself.
    """
    if settings.grpc_port:
        _listener(settings.host, settings.grpc_port, "gRPC").close()
    if not settings.probe_port:
        yield None
        return
    with _listener(settings.host, settings.probe_port, "probes") as listener:
        yield listener


@contextmanager
def every_address(
    settings: Settings, passed: Mapping[str, Any]
) -> Iterator[list[socket.socket] | None]:
    """Listen for HTTP where that is for IPv4 and IPv6; else uvicorn does. Raises `CannotListen`.

    uvicorn's own socket for `::` would be for IPv6 alone, and gRPC's is for both.
    """
    if not _is_every(settings.host) or passed.get("fd") is not None or passed.get("uds"):
        yield None
        return
    with _listener(settings.host, settings.port, "HTTP") as listener:
        yield [listener]


def _is_every(host: str) -> bool:
    """Tell whether an address is `::`, and this machine has sockets for IPv4 and IPv6 at once."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_unspecified and socket.has_dualstack_ipv6()


def _listener(host: str, port: int, purpose: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=_is_every(host))
    except OSError as error:
        where = f"port {port} of {host}"
        raise CannotListen(f"{where} is not to be had for {purpose}: {error.strerror}") from error


def _fetch_first(where: Store, names: Iterable[str]) -> int:
    """Do as `_fetch_missing` before anything is served; a signal ends the process in order."""
    try:
        return _fetch_missing(where, names, Future())
    except (KeyboardInterrupt, SystemExit):
        logger.info("stopped while a model was fetched; the next start goes on with it")
        raise SystemExit(0) from None


def _fetch_missing(where: Store, names: Iterable[str], cancelled: Future[None]) -> int:
    """Fetch the weights that are not there; gives the exit status of the first that failed."""
    statuses = (_fetch(where, name, cancelled) for name in names if not where.has(name))
    return next(filter(None, statuses), 0)


def _fetch(where: Store, name: str, cancelled: Future[None]) -> int:
    """Fetch a model's weights in a process of its own: reading them takes what serving does not.

    Gives its exit status. It ends when `cancelled` is done; another one goes on from there.
    """
    command = python_process.command(
        "service", "models", "fetch", name, f"--model-store={where.root}"
    )
    with subprocess.Popen(command, env=python_process.environment()) as fetching:  # noqa: S603 - ourselves
        cancelled.add_done_callback(lambda _: fetching.kill())
        try:
            return fetching.wait()
        except BaseException:  # a signal
            fetching.kill()
            raise
