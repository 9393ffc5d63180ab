"""The core: all that the API's routes share under every protocol: models, quotas and metrics."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

from service.serving.metrics.metrics import Metrics
from service.serving.predictor import Predictor
from service.serving.rate_limits import Quotas
from service.serving.registry import ModelRegistry
from service.serving.shadow import ShadowCandidate


@dataclass(frozen=True, slots=True)
class Core:
    """Serves models, for as long as it is entered."""

    models: ModelRegistry
    shadow: ShadowCandidate
    metrics: Metrics
    quotas: Quotas = field(default_factory=Quotas)
    _life: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        await self._life.enter_async_context(self.models)
        await self._life.enter_async_context(self.shadow)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()

    @contextmanager
    def use(self, name: str | None = None) -> Iterator[Predictor]:
        """Use a model until the context is left; raises `UnknownModel` or `NotReady`."""
        shadow = self.shadow if name in {None, self.models.default} else None
        with self.models.use(name) as classifier:
            yield Predictor(classifier, shadow, self.metrics)

    def admit(
        self,
        name: str | None,
        *,
        plan: str,
        seconds: float,
        maps: bool = False,
        background: bool = False,
    ) -> None:
        """Raise what a request with one image would be refused with now."""
        classifier = self.models.find(name).classifier
        classifier.admit(plan=plan, seconds=seconds, maps=maps, background=background)

    async def load(self, name: str, *, default: bool, share: float | None) -> None:
        """Serve a model; see `ModelRegistry.load`, `set_default` and `ShadowCandidate.follow`."""
        await self.models.load(name)
        if default:
            self.models.set_default(name)
        if share is not None:
            self.shadow.follow(name, share)
