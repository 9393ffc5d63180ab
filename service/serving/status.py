"""The status of the models that are served: what probes, metadata and routes know of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from service.errors import NotReady, UnknownModel
from service.models.ensemble import Ensemble

T = TypeVar("T")


def find(
    name: str, served: Mapping[str, T], missing: Mapping[str, str], version: Callable[[T], str]
) -> T:
    """Return the model that a name means; raises `UnknownModel`, or `NotReady` if it is missing.

    `name@version` is the model `name` if it has that version, unless a model has that name.
    `missing` has the reasons why models are not loaded.
    """
    if model := served.get(name):
        return model
    plain, _, wanted = name.partition("@")
    model = served.get(plain)
    if model and version(model) == wanted:
        return model
    if reason := missing.get(name) or (not model and missing.get(plain)):
        raise NotReady(reason)
    there = ", ".join(served) or "none yet"
    raise UnknownModel(f"there is no model {name!r} here; there are {there}")


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model that is loaded."""

    ensemble: Ensemble
    failure_reason: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """All models at one moment."""

    default: str
    served: Mapping[str, ModelStatus]  # by name
    missing: Mapping[str, str]  # why models are not loaded, by name
    not_loaded_reason: str | None  # None if all are loaded
    failure_reason: str | None  # None if none has failed
    excluded_reasons: Mapping[str, str]  # the same of models for which no probe fails, by name
    shadow: tuple[str, float] | None  # the candidate and its share of the requests

    @property
    def is_ready(self) -> bool:
        """Whether all models are loaded and none has failed."""
        return not (self.not_loaded_reason or self.failure_reason)

    def find(self, name: str | None = None) -> ModelStatus:
        """Return a model, by default the default; raises `UnknownModel` or `NotReady`."""
        name = name or self.default
        return find(name, self.served, self.missing, lambda model: model.ensemble.version)
