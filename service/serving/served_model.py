"""A served model: loads in the background, serves, restarts its worker, reports its state."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

from service.errors import InferenceFailed, NotReady, ServiceError
from service.models.ensemble import Ensemble, Result
from service.scheduling.batcher import Batcher
from service.scheduling.types import Backlog, Report, RestartReport
from service.serving.backend import Backend, Payload
from service.serving.classifier import Classifier
from service.serving.restart_policy import Restarts
from service.serving.types import Limits

logger = logging.getLogger(__name__)

LOADING = "the model is being loaded, warmed and timed"
RESTARTING = "the worker has ended and is being restarted"
FAILED = "the model could not be loaded; the log says why"

_ENDED = "the worker ended too often"
_NO_RESTARTS = Restarts()
_FAILURES = 3  # batches in a row that failed, after which the device is not expected to recover


@dataclass(frozen=True, slots=True)
class _Serving:
    backend: Backend
    batcher: Batcher[Payload, Result]
    classifier: Classifier


class ServedModel:
    """Loads an ensemble and serves it while it is entered.

    A backend that ends by itself is loaded again after a delay; `gave_up` is called when it has
    ended too often for that.
    """

    def __init__(
        self,
        load: Callable[[Future[None]], Backend],
        limits: Limits,
        report: Report,
        gave_up: Callable[[], None] = lambda: None,
        restarts: Restarts = _NO_RESTARTS,
    ) -> None:
        self._load = load
        self._limits = limits
        self._report = report
        self._gave_up = gave_up
        self._restarts = restarts
        self._serving: _Serving | None = None
        self._failure: Exception | None = None
        self._not_loaded: str | None = LOADING  # why nothing is served now
        self._load_seconds = 0.0

    async def __aenter__(self) -> Self:
        self._loaded = asyncio.Event()
        self._living = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._living

    async def _live(self) -> None:
        """Load and serve, again after each end of the worker, until it ends too often."""
        restarts = self._restarts
        while True:
            await self._serve_once()
            if not self._loaded.is_set():
                self._not_loaded = FAILED
                self._loaded.set()
                return
            restarts = restarts.ended(time.monotonic())
            if restarts.are_too_many:
                logger.error("the worker ended %d times in a minute; giving up", len(restarts.ends))
                self._failure = self._failure or InferenceFailed(_ENDED)
                self._not_loaded = FAILED
                self._gave_up()
                return
            logger.error("the worker ended, restarting it in %g s", restarts.delay)
            self._failure = None
            self._report(RestartReport(serves=False))
            await asyncio.sleep(restarts.delay)

    async def _serve_once(self) -> None:
        """Load and serve until the worker ends; log and keep the error if the load fails."""
        try:
            async with self._served() as backend:
                if self._loaded.is_set():
                    self._report(RestartReport(serves=True))
                self._loaded.set()
                await backend.ended()
        except ServiceError as error:
            logger.error("the model could not be loaded: %s", error)  # noqa: TRY400 - says it all
            self._failure = error
        except Exception as error:  # a model may fail to load in any way; the probes report it
            logger.exception("the model could not be loaded")
            self._failure = error

    @contextlib.asynccontextmanager
    async def _served(self) -> AsyncIterator[Backend]:
        """Load a backend and serve with it."""
        started = time.monotonic()
        backend = await self._backend()
        async with contextlib.AsyncExitStack() as life:
            # Closing may take long or hang; the event loop goes on meanwhile.
            life.push_async_callback(asyncio.to_thread, backend.close)
            ensemble = backend.ensemble
            batcher = Batcher(
                backend.executors,
                ensemble.costs,
                max_bytes=self._limits.max_queue_bytes,
                report=self._report,
                background_share=self._limits.background_share,
            )
            await life.enter_async_context(batcher)
            self._load_seconds = time.monotonic() - started
            self._serving = _Serving(backend, batcher, Classifier(backend, batcher, self._limits))
            self._not_loaded = None
            _log_serving(ensemble, self._load_seconds)
            try:
                yield backend
            finally:
                self._not_loaded = RESTARTING

    async def _backend(self) -> Backend:
        """Load in a thread; cancelling this cancels the load."""
        cancelled: Future[None] = Future()
        thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        loading = thread.submit(self._load, cancelled)
        thread.shutdown(wait=False)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_close)
            cancelled.set_result(None)
            raise

    async def ready(self) -> Classifier:
        """Wait until the model is loaded; raises the error of the load."""
        await self._loaded.wait()
        if self._failure:
            raise self._failure
        return self.classifier

    @property
    def classifier(self) -> Classifier:
        """The classifier; raises `NotReady` while the model is not loaded."""
        if self._not_loaded:
            raise NotReady(self._not_loaded)
        return self._last_serving().classifier

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble served now or last; raises `NotReady` before the first load."""
        return self._last_serving().backend.ensemble

    @property
    def backend(self) -> Backend:
        """The backend in use now or last; raises `NotReady` before the first load."""
        return self._last_serving().backend

    @property
    def load_seconds(self) -> float:
        """The seconds of the last load."""
        return self._load_seconds

    def backlog(self) -> Backlog:
        """Sum up the work that was accepted and is not done."""
        if self._serving is None or self._not_loaded:
            return Backlog()
        backlog, backend = self._serving.batcher.backlog(), self._serving.backend
        return replace(
            backlog,
            seconds=backlog.seconds + backend.decode_wait(0),
            stalled=max(backlog.stalled, backend.stalled),
        )

    @property
    def cached(self) -> int:
        """The bytes of cached results."""
        return self._serving.classifier.cached if self._serving else 0

    @property
    def not_loaded_reason(self) -> str | None:
        """Why the model is not loaded, or None if it is."""
        return self._not_loaded

    @property
    def failure_reason(self) -> str | None:
        """Why the model has failed, or None if it has not."""
        if self._failure:
            return self._not_loaded
        serving = self._serving if not self._not_loaded else None
        return next(self._failures(serving), None) if serving else None

    def _failures(self, serving: _Serving) -> Iterator[str]:
        if not serving.batcher.alive:
            yield "the batcher's loop has ended"
        if serving.batcher.failures >= _FAILURES:
            yield f"the device failed on the last {serving.batcher.failures} batches"
        if self.backlog().stalled > self._limits.stall_seconds:
            yield f"the device has not answered for {self.backlog().stalled:.0f} s"

    def _last_serving(self) -> _Serving:
        if self._serving is None:
            raise NotReady(self._not_loaded or LOADING)
        return self._serving


def _log_serving(ensemble: Ensemble, seconds: float) -> None:
    logger.info(
        "serving %s on %s in %s, ready after %.1f s",
        ensemble.name,
        ensemble.device,
        ensemble.precision,
        seconds,
    )
    if ensemble.notice:
        logger.warning("%s: %s", ensemble.name, ensemble.notice)


def _close(loading: Future[Backend]) -> None:
    """Close a backend whose load was cancelled too late."""
    if not loading.cancelled() and not loading.exception():
        loading.result().close()
