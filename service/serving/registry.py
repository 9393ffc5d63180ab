"""The registry: models served side by side, by name; loaded, reloaded and unloaded at run time.

A model is reloaded beside the one that serves: loaded, warmed and timed. It replaces the old one in
one step, and that is closed once it has no users; if the load fails, the old one stays. Each model
has a worker process of its own, so that unloading returns all of its memory and a failure of one
does not stop the others. Probes cover all models.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any, Self

from service.errors import (
    CannotServe,
    CapacityExceeded,
    Conflict,
    ServiceError,
    UnknownModel,
)
from service.scheduling.types import Backlog
from service.serving import status
from service.serving.classifier import Classifier
from service.serving.model_slot import (
    Loading,
    ModelSlot,
    RegistryHooks,
    RegistryLimits,
    wait_ready,
)
from service.serving.readiness import Readiness
from service.serving.served_model import FAILED, ServedModel

logger = logging.getLogger(__name__)


class ModelRegistry:
    """Serves the named models while it is entered; the first is the default.

    Raises `NotReady` for a model until it is loaded. Checks for changed files every
    `watch_seconds`, if that is not 0.
    """

    def __init__(
        self,
        names: Sequence[str],
        hooks: RegistryHooks,
        limits: RegistryLimits,
        *,
        watch_seconds: float = 0.0,
    ) -> None:
        self._hooks, self._limits, self._watch_seconds = hooks, limits, watch_seconds
        self.readiness = Readiness(names, lambda: self.served)
        self._slots: dict[str, ModelSlot] = {}
        self._loading: Loading | None = None
        self._refused: dict[str, object] = {}  # fingerprints of files that could not be served
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._begin(self._start())
        if self._watch_seconds:
            self._begin(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(slot.life.aclose() for slot in self._slots.values()))

    # Requests.

    @property
    def default(self) -> str:
        """The name of the model for requests that name none."""
        return self.readiness.default

    @property
    def served(self) -> Mapping[str, ServedModel]:
        """The models that are served now, by name."""
        return {name: slot.served_model for name, slot in self._slots.items()}

    def use(self, name: str | None = None) -> AbstractContextManager[Classifier]:
        """Keep a model open until this context is left; raises what `status.find` does."""
        return self._slot(name or self.default)

    def _slot(self, name: str) -> ModelSlot:
        return status.find(name, self._slots, self.readiness.missing, lambda slot: slot.version)

    # Probes and metrics.

    def backlog(self) -> Backlog:
        """Sum up the accepted work of all models; they share the devices."""
        backlogs = [model.backlog() for model in self.served.values()]
        return Backlog(
            rows=sum(backlog.rows for backlog in backlogs),
            background=sum(backlog.background for backlog in backlogs),
            nbytes=sum(backlog.nbytes for backlog in backlogs),
            seconds=sum(backlog.seconds for backlog in backlogs),
            stalled=max((backlog.stalled for backlog in backlogs), default=0.0),
        )

    def cached(self) -> int:
        """Sum up the bytes of all models' cached results."""
        return sum(model.cached for model in self.served.values())

    # Administration.

    async def load(self, name: str) -> None:
        """Serve a model as its files are now; requests to the one before it go on meanwhile.

        Does nothing if it is served so and has not failed. Raises `UnknownModel`, `Conflict` while
        another model is being loaded, `CapacityExceeded`, or `CannotServe` with the reason.
        """
        fingerprint = await self._fingerprint(name)
        if fingerprint is None:
            raise UnknownModel(f"there is no model {name!r} in the store")
        await self._load_unless_current(name, fingerprint)
        self.readiness.include(name)

    def set_default(self, name: str) -> None:
        """Make a served model the default."""
        self._slot(name)
        self.readiness.default = name

    def unload(self, name: str) -> None:
        """Unload a model after its accepted work; raises `Conflict` for the default."""
        if name == self.default:
            raise Conflict(f"{name} is the default model; make another model the default first")
        if self._loading and self._loading.name == name:
            raise Conflict(f"{name} is being loaded; unload it afterwards")
        if name not in self._slots:
            raise UnknownModel(f"there is no model {name!r} here")
        old = self._slots.pop(name)
        self._report_changed()
        self._begin(old.retire())
        logger.info("unloaded %s", name)

    def refresh(self) -> None:
        """Reload, one after the other, the models whose files have changed."""
        self._begin(self._refresh())

    # Loading.

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        missing = self.readiness.missing
        for name in [*missing]:
            try:
                fingerprint = await self._fingerprint(name)
                await self._wait_for_load()
                if name in missing:  # no request has loaded it since
                    await self._begin_load(name, fingerprint)
            except ServiceError as error:
                missing[name] = FAILED
                if not isinstance(error, CannotServe):  # which has been logged already
                    logger.error("cannot load %s: %s", name, error)  # noqa: TRY400 - says it all

    async def _load_unless_current(self, name: str, fingerprint: object) -> None:
        """Do what `load` does, for files of this fingerprint."""
        slot = self._slots.get(name)
        if slot and slot.fingerprint == fingerprint and not slot.served_model.failure_reason:
            return
        if self._loading:
            raise Conflict(f"{self._loading.name} is being loaded; one model is loaded at a time")
        if slot is None and len(self._slots) >= self._limits.models:
            raise CapacityExceeded(
                f"{len(self._slots)} models are served, the limit; unload one first"
            )
        self._check_memory(name, [])
        # The load continues if the client disconnects.
        await asyncio.shield(self._begin_load(name, fingerprint))

    def _begin_load(self, name: str, fingerprint: object) -> asyncio.Task[None]:
        task = self._begin(self._load(name, fingerprint))
        self._loading = Loading(name, task)
        return task

    async def _load(self, name: str, fingerprint: object) -> None:
        try:
            async with AsyncExitStack() as life:
                fresh = await life.enter_async_context(self._hooks.make(name))
                await wait_ready(fresh)
                self._check_memory(name, [fresh])
                old = self._slots.get(name)
                self._slots[name] = ModelSlot(fresh, fingerprint, life.pop_all())
                self.readiness.loaded(name)
        finally:
            self._loading = None
        self._report_changed()
        if old:
            logger.info("reloaded %s", name)
            self._begin(old.retire())

    async def _wait_for_load(self) -> None:
        """Wait until no model is being loaded."""
        while self._loading:
            await asyncio.wait([self._loading.task])

    async def _fingerprint(self, name: str) -> object:
        return await asyncio.to_thread(self._hooks.fingerprint, name)  # which reads files

    def _check_memory(self, name: str, fresh: Sequence[ServedModel]) -> None:
        """Raise `CapacityExceeded` if the models would take more memory than the limit."""
        limit = self._limits.nbytes
        others = [model for other, model in self.served.items() if other != name]
        total = sum(self._hooks.nbytes(model) for model in (*others, *fresh))
        if limit and total > limit:
            raise CapacityExceeded(
                f"with {name} the models would take {total} bytes; the limit is {limit}"
            )

    def _report_changed(self) -> None:
        self._hooks.changed(self.served)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watch_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        for name in [*self._slots]:
            await self._wait_for_load()
            if name in self._slots:  # it was not unloaded meanwhile
                await self._reload(name)

    async def _reload(self, name: str) -> None:
        """Reload a model if its files have changed, and are not ones that failed to load."""
        fingerprint = await self._fingerprint(name)
        slot = self._slots.get(name)
        if slot is None or fingerprint in (None, slot.fingerprint, self._refused.get(name)):
            return
        try:
            await self._load_unless_current(name, fingerprint)
        except CannotServe as error:
            self._refused[name] = fingerprint
            version = slot.served_model.ensemble.version
            logger.error(  # noqa: TRY400 - says it all
                "reload of %s failed, keeping version %s: %s", name, version, error
            )
        except ServiceError as error:  # which may not hold the next time
            logger.warning("reload of %s postponed: %s", name, error)
