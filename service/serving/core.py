"""The core: all that the API's routes share under every protocol: models, quotas and metrics."""

import time
from collections.abc import Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    contextmanager,
)
from dataclasses import dataclass, field
from typing import Protocol, Self

from prometheus_client.metrics_core import Metric

from service.serving.metrics.metrics import Metrics
from service.serving.predictor import AdmitRequest, LocalPredictor, Predictor
from service.serving.rate_limits import Limit, Quotas, Usage
from service.serving.registry import ModelRegistry
from service.serving.shadow import ShadowCandidate
from service.serving.status import ModelStatus, Status


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A model to serve, and its part in the traffic."""

    name: str
    default: bool  # whether requests that name no model get it
    # Of the default's requests, as a shadow candidate; None leaves that as it is.
    share: float | None


class Core(AbstractAsyncContextManager["Core"], Protocol):
    """Serves models, for as long as it is entered: in this process, or in another one."""

    @property
    def metrics(self) -> Metrics:
        """What this process counts."""

    @property
    def status(self) -> Status:
        """The models as they are now."""

    def use(self, name: str | None = None) -> AbstractContextManager[Predictor]:
        """Use a model until the context is left; raises `UnknownModel` or `NotReady`."""

    async def admit(self, name: str | None, request: AdmitRequest) -> None:
        """Raise what a request would be refused with now, if that is known."""

    async def take(self, key: str, limits: tuple[Limit, ...]) -> Usage:
        """Count a request of an API key, unless a limit is reached."""

    async def load(self, request: LoadRequest) -> None:
        """Serve a model; see `ModelRegistry.load`, `set_default` and `ShadowCandidate.follow`."""

    async def unload(self, name: str) -> None:
        """Unload a model; see `ModelRegistry.unload`."""

    async def collect(self) -> Sequence[Metric]:
        """Collect the metrics of all processes."""


@dataclass(frozen=True, slots=True)
class LocalCore:
    """The core in this process."""

    models: ModelRegistry
    shadow: ShadowCandidate
    metrics: Metrics
    _quotas: Quotas = field(default_factory=Quotas)
    _life: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        await self._life.enter_async_context(self.models)
        await self._life.enter_async_context(self.shadow)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()

    @property
    def status(self) -> Status:
        """The models as they are now."""
        models, readiness = self.models, self.models.readiness
        return Status(
            default=models.default,
            served={
                name: ModelStatus(model.ensemble, model.failure_reason)
                for name, model in models.served.items()
            },
            missing=readiness.missing,
            not_loaded_reason=readiness.not_loaded_reason,
            failure_reason=readiness.failure_reason,
            excluded_reasons=readiness.excluded_reasons,
            shadow=self.shadow.share,
        )

    @contextmanager
    def use(self, name: str | None = None) -> Iterator[Predictor]:
        """Use a model until the context is left; raises `UnknownModel` or `NotReady`."""
        shadow = self.shadow if name in {None, self.models.default} else None
        with self.models.use(name) as classifier:
            yield LocalPredictor(classifier, shadow, self.metrics)

    async def admit(self, name: str | None, request: AdmitRequest) -> None:
        """Raise what a request would be refused with now."""
        with self.use(name) as predictor:
            await predictor.admit(request)

    async def take(self, key: str, limits: tuple[Limit, ...]) -> Usage:
        """Count a request of an API key, unless a limit is reached."""
        return self._quotas.take(key, limits, time.monotonic())

    async def load(self, request: LoadRequest) -> None:
        """Serve a model; see `ModelRegistry.load`, `set_default` and `ShadowCandidate.follow`."""
        await self.models.load(request.name)
        if request.default:
            self.models.set_default(request.name)
        if request.share is not None:
            self.shadow.follow(request.name, request.share)

    async def unload(self, name: str) -> None:
        """Unload a model; see `ModelRegistry.unload`."""
        self.models.unload(name)

    async def collect(self) -> Sequence[Metric]:
        """Collect the metrics of this process."""
        return [*self.metrics.registry.collect()]
