"""Start-up: which models have to be loaded for the service to go on."""

import sys
from collections.abc import Callable, Collection
from concurrent.futures import Future

from service.models.store import Store
from service.server import log_config, weights_download, welcome
from service.serving.backend import Backend
from service.settings import Settings
from service.worker import client


class Startup:
    """Loads backends; `stop` is called when one that the service cannot do without fails."""

    def __init__(
        self,
        settings: Settings,
        model_store: Store,
        stop: Callable[[], None],
        port: Callable[[], int],
    ) -> None:
        self._settings, self._store, self._stop, self._port = settings, model_store, stop, port
        self._required = {*settings.served} - ({settings.shadow} - {settings.model})
        self._unserved = {*self._required}
        self.has_failed = False

    def load(self, settings: Settings, cancelled: Future[None]) -> Backend:
        """Load a model, downloading it first; fails if it was to be served at start."""
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
                sys.stderr.write(welcome.text(self._settings, self._port(), self._store))

    def _fail(self) -> None:
        self.has_failed = True
        self._stop()
