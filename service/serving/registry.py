"""The models that are served, by name: loaded, replaced and let go while requests go on.

A model that is loaded anew is loaded, warmed and timed beside the one that serves, takes its
place in one step, and the old one is closed when nobody uses it any more. If that fails, the old
one stays. Each has a process of its own, so that all of its memory is given back when it is let
go, and the others work on while one is broken; the probes speak for all of them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from service.errors import (
    CannotServe,
    CapacityExceeded,
    Conflict,
    NotReady,
    ServiceError,
    UnknownModel,
)
from service.scheduling.types import Backlog
from service.serving.classifier import Classifier
from service.serving.served_model import FAILED, LOADING, LOADING_RETRY, ServedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be served side by side; see `service.settings` for each."""

    models: int
    nbytes: int  # resident, of all models' processes together; 0: no bound


@dataclass(frozen=True, slots=True)
class RegistryHooks:
    """Where models come from, and who learns which are served."""

    make: Callable[[str], ServedModel]
    """Makes what will load and serve a model."""
    fingerprint: Callable[[str], object]
    """Gives what is different once a model's files are; nothing if there is no such model."""
    nbytes: Callable[[ServedModel], int]
    """Measures the resident memory of a model's process."""
    changed: Callable[[Mapping[str, ServedModel]], None]
    """Learns what is served from now on."""


@dataclass(frozen=True, slots=True)
class _Loading:
    """A model that is being loaded."""

    name: str
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class _Slot:
    """A model that serves: what its files were when it was loaded, its users, and its end."""

    served_model: ServedModel
    fingerprint: object
    life: contextlib.AsyncExitStack
    users: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)  # by one of its users


class ModelRegistry:
    """Serves models while it is entered: those named, of which the first is the default.

    Answers `NotReady` for one until it is loaded. Looks for changed files every `watch_seconds`,
    if that is not 0.
    """

    def __init__(
        self,
        names: Sequence[str],
        hooks: RegistryHooks,
        bounds: Bounds,
        *,
        watch_seconds: float = 0.0,
    ) -> None:
        self._shelf, self._bounds, self._watch_seconds = hooks, bounds, watch_seconds
        self._default = names[0]
        self._candidate: str | None = None
        self._former: set[str] = set()  # candidates that did not work when another was tried
        self._slots: dict[str, _Slot] = {}
        self._wrong: dict[str, str] = dict.fromkeys(names, LOADING)  # with what is not there
        self._loading: _Loading | None = None
        self._refused: dict[str, object] = {}  # stamps of files that could not be served
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

    # What a request asks.

    @property
    def default(self) -> str:
        """The name of the model that is asked when a request names none."""
        return self._default

    @property
    def served(self) -> Mapping[str, ServedModel]:
        """What is served now, by name."""
        return {name: slot.served_model for name, slot in self._slots.items()}

    def find(self, name: str | None = None) -> ServedModel:
        """Give a model to ask at once; raises `UnknownModel`, or `NotReady` until it is loaded.

        `name@version` is the model `name` if it has that version, unless one is so called.
        """
        return self._slot(name or self._default).served_model

    @contextlib.contextmanager
    def use(self, name: str | None = None) -> Iterator[Classifier]:
        """Give a model that is not closed until it is left; raises what `find` does."""
        slot = self._slot(name or self._default)
        slot.users += 1
        try:
            yield slot.served_model.classifier
        finally:
            slot.users -= 1
            slot.left.set()

    def _slot(self, name: str) -> _Slot:
        if slot := self._slots.get(name):
            return slot
        plain, _, version = name.partition("@")
        slot = self._slots.get(plain)
        if slot and slot.served_model.ensemble.version == version:
            return slot
        if name in self._wrong:
            raise NotReady(self._wrong[name], retry_after=LOADING_RETRY)
        raise UnknownModel(f"there is no model {name!r} here; there are {', '.join(self._slots)}")

    # What a probe or a gauge asks.

    def exclude_from_probes(self, candidate: str | None) -> None:
        """Let no probe fail for this model from now on: nobody waits for its answers.

        Nor for the one before it, if that does not work, until it is loaded: whoever tries
        another candidate has not begun to wait for the first.
        """
        if (former := self.candidate) and self._complaint(former):
            self._former.add(former)
        self._candidate = candidate

    @property
    def candidate(self) -> str | None:
        """The model that is excused, unless it has become the default."""
        return None if self._candidate == self._default else self._candidate

    @property
    def is_excluded_from_probes(self) -> Mapping[str, str]:
        """What is wrong with models that no probe fails for, by name."""
        found = {name: self._complaint(name) for name in sorted(self._excused)}
        return {name: complaint for name, complaint in found.items() if complaint}

    @property
    def _excused(self) -> set[str]:
        return (self._former | ({self._candidate} if self._candidate else set())) - {self._default}

    def _complaint(self, name: str) -> str | None:
        """Say why a model is not there, or its work at a standstill."""
        slot = self._slots.get(name)
        return slot.served_model.failure_reason if slot else self._wrong.get(name)

    @property
    def _missing(self) -> list[str]:
        return [reason for name, reason in self._wrong.items() if name not in self._excused]

    @property
    def not_loaded_reason(self) -> str | None:
        """Why not all models that were asked for are there, or nothing if they are."""
        is_excluded_from_probes = self._excused
        absent = (
            one.not_loaded_reason
            for name, one in self.served.items()
            if name not in is_excluded_from_probes
        )
        return next(filter(None, (*self._missing, *absent)), None)

    @property
    def failure_reason(self) -> str | None:
        """Why a model's work is at a standstill, or nothing if all go on; not of one excused."""
        is_excluded_from_probes = self._excused
        standstills = (
            one.failure_reason
            for name, one in self.served.items()
            if name not in is_excluded_from_probes
        )
        failed = FAILED if FAILED in self._missing else None
        return failed or next(filter(None, standstills), None)

    @property
    def is_ready(self) -> bool:
        """Are all models there that were asked for, and does the work of each go on."""
        return not (self.not_loaded_reason or self.failure_reason)

    def backlog(self) -> Backlog:
        """Sum up what all models have accepted and not done; they share the devices."""
        found = [one.backlog() for one in self.served.values()]
        return Backlog(
            rows=sum(one.rows for one in found),
            background=sum(one.background for one in found),
            nbytes=sum(one.nbytes for one in found),
            seconds=sum(one.seconds for one in found),
            stalled=max((one.stalled for one in found), default=0.0),
        )

    def cached(self) -> int:
        """Sum up the bytes of answers that all models keep."""
        return sum(one.cached for one in self.served.values())

    # What somebody who may decides.

    async def load(self, name: str) -> None:
        """Serve a model as its files are now, while those who ask the one before notice nothing.

        Does nothing if it is served so, and works. Raises `UnknownModel`, `Conflict` while another
        one is being loaded, `CapacityExceeded`, or `CannotServe` with what is wrong with it.
        """
        fingerprint = await self._fingerprint(name)
        if fingerprint is None:
            raise UnknownModel(f"there is no model {name!r} in the store")
        await self._bring(name, fingerprint)
        self._former.discard(name)  # whoever wants it waits for it

    def set_default(self, name: str) -> None:
        """Make a model that is served the one that is asked when a request names none."""
        self._slot(name)
        self._default = name

    def unload(self, name: str) -> None:
        """Serve a model no more; what it has accepted is done. Not for the default: `Conflict`."""
        if name == self._default:
            raise Conflict(f"{name} is asked when a request names no model; prefer another first")
        if self._loading and self._loading.name == name:
            raise Conflict(f"{name} is being loaded; let it go when it is")
        if name not in self._slots:
            raise UnknownModel(f"there is no model {name!r} here")
        old = self._slots.pop(name)
        self._tell()
        self._begin(_retire(old))
        logger.info("%s is served no more", name)

    def refresh(self) -> None:
        """Load anew, one after the other, what is served and has other files now."""
        self._begin(self._refresh())

    # How it is done.

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        for name in [*self._wrong]:
            try:
                fingerprint = await self._fingerprint(name)
                await self._no_load()
                if name in self._wrong:  # no request has loaded it since
                    await self._begin_load(name, fingerprint)
            except ServiceError as error:
                self._wrong[name] = FAILED
                if not isinstance(error, CannotServe):  # of which the log says more already
                    logger.error("%s cannot be served: %s", name, error)  # noqa: TRY400 - says it all

    async def _bring(self, name: str, fingerprint: object) -> None:
        """Do what `load` does, for files that have this stamp."""
        slot = self._slots.get(name)
        if slot and slot.fingerprint == fingerprint and not slot.served_model.failure_reason:
            return
        if self._loading:
            raise Conflict(f"{self._loading.name} is being loaded; one model is loaded at a time")
        if slot is None and len(self._slots) >= self._bounds.models:
            raise CapacityExceeded(
                f"{len(self._slots)} models are served, as many as may be; let one go"
            )
        self._check_memory(name, [])
        # Whoever asked for it may leave: it goes on.
        await asyncio.shield(self._begin_load(name, fingerprint))

    def _begin_load(self, name: str, fingerprint: object) -> asyncio.Task[None]:
        task = self._begin(self._load(name, fingerprint))
        self._loading = _Loading(name, task)
        return task

    async def _load(self, name: str, fingerprint: object) -> None:
        try:
            async with contextlib.AsyncExitStack() as life:
                fresh = await life.enter_async_context(self._shelf.make(name))
                await _ready(fresh)
                self._check_memory(name, [fresh])
                old = self._slots.get(name)
                self._slots[name] = _Slot(fresh, fingerprint, life.pop_all())
                self._wrong.pop(name, None)
                self._former.discard(name)
        finally:
            self._loading = None
        self._tell()
        if old:
            logger.info("%s was loaded anew; the one before ends what it has begun", name)
            self._begin(_retire(old))

    async def _no_load(self) -> None:
        """Wait until no model is being loaded."""
        while self._loading:
            await asyncio.wait([self._loading.task])

    async def _fingerprint(self, name: str) -> object:
        return await asyncio.to_thread(self._shelf.fingerprint, name)  # which reads files

    def _check_memory(self, name: str, fresh: Sequence[ServedModel]) -> None:
        """Raise `CapacityExceeded` if what will be served has more memory than it may."""
        most = self._bounds.nbytes
        others = [one for other, one in self.served.items() if other != name]
        total = sum(self._shelf.nbytes(one) for one in (*others, *fresh))
        if most and total > most:
            raise CapacityExceeded(
                f"with {name} the models would take {total} bytes; the limit is {most}"
            )

    def _tell(self) -> None:
        self._shelf.changed(self.served)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watch_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        for name in [*self._slots]:
            await self._no_load()
            if name in self._slots:  # nobody has let it go meanwhile
                await self._renew(name)

    async def _renew(self, name: str) -> None:
        """Load a model anew if its files are others now, and not ones that were refused."""
        fingerprint = await self._fingerprint(name)
        if name not in self._slots:
            return
        if fingerprint in (None, self._slots[name].fingerprint, self._refused.get(name)):
            return
        try:
            await self._bring(name, fingerprint)
        except CannotServe as error:
            self._refused[name] = fingerprint
            logger.error("%s stays as it was: %s", name, error)  # noqa: TRY400 - says it all
        except ServiceError as error:  # which may not hold the next time
            logger.warning("%s has other files now: %s", name, error)


async def _ready(fresh: ServedModel) -> None:
    """Wait until a model is loaded; raises `CannotServe` if it cannot be."""
    try:
        await fresh.ready()
    except ServiceError as error:
        raise CannotServe(str(error)) from error
    except Exception as error:  # a model may fail to load in any way, and has been logged
        raise CannotServe(FAILED) from error


async def _retire(old: _Slot) -> None:
    """Close a model when nobody uses it any more, or at once if there is no time for that."""
    try:
        while old.users:
            old.left.clear()
            await old.left.wait()
    finally:
        await old.life.aclose()
