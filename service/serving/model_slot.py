"""A served model's slot in the registry, and the registry's limits and hooks."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.errors import CannotServe, ServiceError
from service.serving.classifier import Classifier
from service.serving.served_model import FAILED, ServedModel


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """How many models are served side by side; see `service.settings` for each."""

    models: int
    nbytes: int  # resident, of all models' processes together; 0: no limit


@dataclass(frozen=True, slots=True)
class RegistryHooks:
    """How the registry makes models, and what is called when they change."""

    make: Callable[[str], ServedModel]
    """Makes the object that loads and serves a model."""
    fingerprint: Callable[[str], object]
    """Returns a value that changes with a model's files; None if there is no such model."""
    nbytes: Callable[[ServedModel], int]
    """Measures the resident memory of a model's process."""
    changed: Callable[[Mapping[str, ServedModel]], None]
    """Is called with the models that are served from now on."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that is being loaded."""

    name: str
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class ModelSlot:
    """A model that serves: its files' fingerprint, its users, and its exit stack.

    It stays open until the contexts in which it is entered are left.
    """

    served_model: ServedModel
    fingerprint: object
    life: contextlib.AsyncExitStack
    _users: int = 0
    _left: asyncio.Event = field(default_factory=asyncio.Event)  # set by a user that leaves

    @property
    def version(self) -> str:
        """The model's version."""
        return self.served_model.ensemble.version

    def __enter__(self) -> Classifier:
        classifier = self.served_model.classifier
        self._users += 1
        return classifier

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._left.set()

    async def retire(self) -> None:
        """Close the model once it has no users, or at once when cancelled."""
        try:
            while self._users:
                self._left.clear()
                await self._left.wait()
        finally:
            await self.life.aclose()


async def wait_ready(served_model: ServedModel) -> None:
    """Wait until a model is loaded; raises `CannotServe` if it cannot be."""
    try:
        await served_model.ready()
    except ServiceError as error:
        raise CannotServe(str(error)) from error
    except Exception as error:  # a model may fail to load in any way, and has been logged
        raise CannotServe(FAILED) from error
