"""Download of missing weights, in a process of its own.

Reading the downloaded files needs libraries and memory that serving does not.
"""

import logging
import subprocess
from collections.abc import Iterable
from concurrent.futures import Future

from service import python_process
from service.models.store import Store

logger = logging.getLogger(__name__)


def download_first(model_store: Store, names: Iterable[str]) -> int:
    """Do as `download_missing` before the server starts; a signal ends it with status 0."""
    try:
        return download_missing(model_store, names, Future())
    except (KeyboardInterrupt, SystemExit):
        logger.info("stopped during a download; the next start resumes it")
        raise SystemExit(0) from None


def download_missing(model_store: Store, names: Iterable[str], cancelled: Future[None]) -> int:
    """Download the weights that are missing; returns the exit status of the first failure, or 0."""
    missing = (name for name in names if not model_store.has(name))
    statuses = (_download(model_store, name, cancelled) for name in missing)
    return next(filter(None, statuses), 0)


def _download(model_store: Store, name: str, cancelled: Future[None]) -> int:
    """Run `models fetch` and return its exit status; it is killed when `cancelled` is done.

    Another one resumes a download that was killed.
    """
    command = python_process.command(
        "service", "models", "fetch", name, f"--model-store={model_store.root}"
    )
    with subprocess.Popen(command, env=python_process.environment()) as process:  # noqa: S603 - ourselves
        cancelled.add_done_callback(lambda _: process.kill())
        try:
            return process.wait()
        except BaseException:  # a signal
            process.kill()
            raise
