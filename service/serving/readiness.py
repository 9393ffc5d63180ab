"""Readiness of all models: why one is not loaded or has failed, and which ones probes ignore."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from service.serving.served_model import FAILED, LOADING, ServedModel

Served = Mapping[str, ServedModel]


class Readiness:
    """What is known of models that are not served, and the models excluded from probes."""

    def __init__(self, names: Sequence[str], served: Callable[[], Served]) -> None:
        self._served = served
        self.default = names[0]
        self.missing: dict[str, str] = dict.fromkeys(names, LOADING)  # name to reason
        self._candidate: str | None = None
        self._former: set[str] = set()  # candidates that had failed when another replaced them

    def exclude(self, candidate: str | None) -> None:
        """Let no probe fail for this model from now on: no client waits for it.

        A candidate before it that has failed stays excluded until it is loaded.
        """
        if (former := self.candidate) and self._reason(former):
            self._former.add(former)
        self._candidate = candidate

    def include(self, name: str) -> None:
        """Include a former candidate in probes again."""
        self._former.discard(name)

    def loaded(self, name: str) -> None:
        """Record that a model is served now."""
        self.missing.pop(name, None)
        self.include(name)

    @property
    def candidate(self) -> str | None:
        """The model excluded from probes, unless it has become the default."""
        return None if self._candidate == self.default else self._candidate

    @property
    def excluded_reasons(self) -> Mapping[str, str]:
        """Why models excluded from probes are not loaded or have failed, by name."""
        reasons = {name: self._reason(name) for name in sorted(self._excluded)}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def not_loaded_reason(self) -> str | None:
        """Why a model is not loaded; None if all are."""
        reasons = (model.not_loaded_reason for model in self._probed())
        return next(filter(None, (*self._missing, *reasons)), None)

    @property
    def failure_reason(self) -> str | None:
        """Why a model has failed; None if none has."""
        if FAILED in self._missing:
            return FAILED
        return next(filter(None, (model.failure_reason for model in self._probed())), None)

    @property
    def _excluded(self) -> set[str]:
        return (self._former | ({self._candidate} if self._candidate else set())) - {self.default}

    @property
    def _missing(self) -> list[str]:
        return [reason for name, reason in self.missing.items() if name not in self._excluded]

    def _probed(self) -> Iterator[ServedModel]:
        excluded = self._excluded
        return (model for name, model in self._served().items() if name not in excluded)

    def _reason(self, name: str) -> str | None:
        served = self._served()
        return served[name].failure_reason if name in served else self.missing.get(name)
