"""A model from its load, in the background, to its end; and how its work goes meanwhile."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

from service.batcher import Batcher
from service.classifier import Classifier, Limits
from service.ensemble import Backend, Ensemble, Payload, Result
from service.errors import NotReady, ServiceError
from service.work import Backlog, Report

logger = logging.getLogger(__name__)

LOADING_RETRY = 5.0  # seconds; nobody knows how long a first load takes
_FAILURES = 3  # batches in a row, after which the device is not expected to recover


@dataclass(frozen=True, slots=True)
class _Serving:
    backend: Backend
    batcher: Batcher[Payload, Result]
    classifier: Classifier


class Servable:
    """Serves an ensemble while it is entered; loads it first, and has no classifier meanwhile."""

    def __init__(self, load: Callable[[], Backend], limits: Limits, report: Report) -> None:
        self._load = load
        self._limits = limits
        self._report = report
        self._serving: _Serving | None = None
        self._failure: Exception | None = None
        self._load_seconds = 0.0
        self._life = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._loading = asyncio.create_task(self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loading
        await self._life.aclose()

    async def _start(self) -> None:
        started = time.monotonic()
        thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        loading = thread.submit(self._load)
        thread.shutdown(wait=False)
        try:
            backend = await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_close)
            raise
        except ServiceError as error:
            logger.error("the model could not be loaded: %s", error)  # noqa: TRY400 - says it all
            self._failure = error
            return
        except Exception as error:  # a model may fail to load in any way; the probes tell
            logger.exception("the model could not be loaded")
            self._failure = error
            return
        self._load_seconds = time.monotonic() - started
        # It may take its time, or hang: others are served meanwhile.
        self._life.push_async_callback(asyncio.to_thread, backend.close)
        ensemble = backend.ensemble
        batcher = Batcher(
            backend.lanes,
            ensemble.costs,
            max_bytes=self._limits.max_queue_bytes,
            report=self._report,
            bulk_share=self._limits.bulk_share,
        )
        await self._life.enter_async_context(batcher)
        self._serving = _Serving(backend, batcher, Classifier(backend, batcher, self._limits))
        logger.info(
            "serving %s on %s in %s, ready after %.1f s",
            ensemble.name,
            ensemble.device,
            ensemble.precision,
            self._load_seconds,
        )
        if ensemble.notice:
            logger.warning("%s: %s", ensemble.name, ensemble.notice)

    async def ready(self) -> Classifier:
        """Wait until the model is loaded; raises what made that fail."""
        await self._loading
        if self._failure:
            raise self._failure
        return self.classifier

    @property
    def classifier(self) -> Classifier:
        """Who answers requests; raises `NotReady` while there is nobody."""
        return self._ready().classifier

    @property
    def ensemble(self) -> Ensemble:
        """What is served; raises `NotReady` while there is nothing."""
        return self._ready().backend.ensemble

    @property
    def backend(self) -> Backend:
        """Who does its work; raises `NotReady` while there is nobody."""
        return self._ready().backend

    @property
    def load_seconds(self) -> float:
        """How long it took to load what is served."""
        return self._load_seconds

    def backlog(self) -> Backlog:
        """Sum up what has been accepted and is not done."""
        if self._serving is None:
            return Backlog()
        backlog, backend = self._serving.batcher.backlog(), self._serving.backend
        return replace(
            backlog,
            seconds=backlog.seconds + backend.lead(0),
            stalled=max(backlog.stalled, backend.stalled),
        )

    @property
    def cached(self) -> int:
        """How many bytes of answers are kept."""
        return self._serving.classifier.cached if self._serving else 0

    @property
    def loaded(self) -> str | None:
        """Why the model is not there yet, or nothing if it is."""
        if self._serving:
            return None
        if self._failure:
            return "the model could not be loaded; the log says why"
        return "the model is being loaded, warmed and timed"

    @property
    def worked(self) -> str | None:
        """Why the device's work is at a standstill, or nothing if it goes on."""
        if self._failure:
            return self.loaded
        return next(self._standstills(self._serving), None) if self._serving else None

    def _standstills(self, serving: _Serving) -> Iterator[str]:
        if not serving.backend.alive:
            yield "the process that classifies has ended"
        if not serving.batcher.alive:
            yield "the batcher's loop has ended"
        if serving.batcher.failures >= _FAILURES:
            yield f"the device failed on the last {serving.batcher.failures} batches"
        if self.backlog().stalled > self._limits.stall_seconds:
            yield f"the device has not answered for {self.backlog().stalled:.0f} s"

    def _ready(self) -> _Serving:
        if self._serving is None:
            raise NotReady(str(self.loaded), retry_after=LOADING_RETRY)
        return self._serving


def _close(loading: Future[Backend]) -> None:
    """Close what was loaded after everybody had left."""
    if not loading.cancelled() and not loading.exception():
        loading.result().close()
