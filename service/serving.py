"""The command that serves: over HTTP, until it is told to stop."""

import gc
import logging
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from rich.logging import RichHandler

from service import apart, app, console, interpreter, store
from service.ensemble import Backend
from service.errors import Unreachable
from service.settings import Settings
from service.store import Store

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30  # what a stop waits for the requests that are being answered


def serve(settings: Settings, _: dict[str, Any]) -> int:
    """Serve over HTTP until told to stop; fetches what is missing of the model first."""
    handler = RichHandler(console=console.terminal(stderr=True), show_path=False)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", handlers=[handler])
    if status := _fetch_missing(store.locate(settings.store), settings.models):
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
        app.create_app(settings, load=load),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    gc.collect()
    gc.freeze()  # what is there stays there: looking through it again and again costs time
    with _ending_well():
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


@contextmanager
def _ending_well() -> Iterator[None]:
    """Make a stop by signal a success: uvicorn, when it is done, raises what stopped it again."""
    asked = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
