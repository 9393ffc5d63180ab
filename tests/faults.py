"""Random faults, by a seed: a backend that fails now and then."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from service.errors import InferenceFailed, OutOfMemory
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Ensemble, Probabilities
from service.scheduling.types import Batch, Executor
from service.serving.backend import Backend, Payload

Run = Callable[[Batch[Payload]], Awaitable[Sequence[Probabilities]]]


@dataclass(frozen=True)
class Rates:
    """How likely each fault is, for each batch or image."""

    failing: float = 0.0  # a batch, before it is computed
    losing: float = 0.0  # a batch, after it was: its results are lost
    miscounting: float = 0.0  # a batch that gives a result too few
    out_of_memory: float = 0.0  # a batch of more than two rows
    slow: float = 0.0  # a batch, by up to a fifth of a second
    broken_decoder: float = 0.0  # an image
    slow_decoder: float = 0.0  # an image, by up to a fifth of a second


@dataclass
class Faulty:
    """A backend that wraps another and injects faults, counted by name."""

    backend: Backend
    rates: Rates
    seed: int = 0
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self.executors: Sequence[Executor[Payload, Probabilities]] = [
            replace(executor, run=partial(self._run, executor.run))
            for executor in self.backend.executors
        ]

    @property
    def ensemble(self) -> Ensemble:
        """The wrapped backend's."""
        return self.backend.ensemble

    @property
    def pid(self) -> int:
        """The wrapped backend's."""
        return self.backend.pid

    async def ended(self) -> None:
        """Wait until the wrapped backend has ended."""
        await self.backend.ended()

    @property
    def stalled(self) -> float:
        """The wrapped backend's."""
        return self.backend.stalled

    def decode_wait(self, images: int) -> float:
        """Return the wrapped backend's."""
        return self.backend.decode_wait(images)

    def close(self) -> None:
        """Close the wrapped backend."""
        self.backend.close()

    async def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> Sequence[Payload]:
        """Prepare an image, or fail."""
        if self._happens("broken_decoder"):
            raise InferenceFailed("the decoder is broken")
        if self._happens("slow_decoder"):
            await asyncio.sleep(self._chance.uniform(0, 0.2))
        return await self.backend.prepare(image, views, bounds, target, features=features)

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Draw a heat map."""
        return await self.backend.paint(image, heat, bounds)

    async def _run(self, run: Run, batch: Batch[Payload]) -> Sequence[Probabilities]:
        if batch.size > 2 and self._happens("out_of_memory"):
            raise OutOfMemory("no memory")
        if self._happens("failing"):
            raise RuntimeError("the device failed")
        if self._happens("slow"):
            await asyncio.sleep(self._chance.uniform(0, 0.2))
        results = await run(batch)
        if self._happens("losing"):
            raise RuntimeError("the device lost the results")
        return results[1:] if self._happens("miscounting") else results

    def _happens(self, fault: str) -> bool:
        rate: float = getattr(self.rates, fault)
        happens = self._chance.random() < rate
        self.injected[fault] += happens
        return happens
