"""The command that serves: over HTTP, until it is told to stop."""

import gc
import logging
import math
import subprocess
from collections.abc import Iterable
from typing import Any

import uvicorn

from service import apart, app, interpreter, logs, store
from service.ensemble import Backend
from service.errors import Unreachable
from service.server import Server
from service.settings import Settings
from service.store import Store

logger = logging.getLogger(__name__)


def serve(settings: Settings, _: dict[str, Any]) -> int:
    """Serve over HTTP until told to stop; fetches what is missing of the model first."""
    logs.configure(settings)
    if settings.fetch and (status := _fetch_missing(store.locate(settings.store), settings.models)):
        if settings.strict or status != Unreachable.exit_status:
            return status
        logger.warning("%s cannot be fetched; the bundled model is served", settings.model)
        settings = settings.model_copy(update={"model": store.BUNDLED})
    failures: list[Exception] = []

    def load(chosen: Settings) -> Backend:
        try:
            return apart.load(chosen)
        except Exception as error:
            failures.append(error)
            server.should_exit = True  # a service without a model has nothing to stay for
            raise

    config = uvicorn.Config(
        app.create_app(settings, load=load, is_leaving=lambda: server.is_leaving),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),  # whole seconds, for uvicorn
    )
    server = Server(config, settings.drain_seconds)
    gc.collect()
    gc.freeze()  # what is there stays there: looking through it again and again costs time
    server.run()
    return 1 if failures else 0


def _fetch_missing(where: Store, names: Iterable[str]) -> int:
    """Fetch the weights that are not there; gives the exit status of the first that failed."""
    statuses = (_fetch(where, name) for name in names if not where.has(name))
    return next(filter(None, statuses), 0)


def _fetch(where: Store, name: str) -> int:
    """Fetch a model's weights in a process of its own: reading them takes what serving does not.

    Gives its exit status.
    """
    command = interpreter.command("service", "models", "fetch", name, f"--store={where.root}")
    return subprocess.run(command, env=interpreter.environment(), check=False).returncode  # noqa: S603 - ourselves
