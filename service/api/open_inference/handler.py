"""The Open Inference Protocol, whichever way it comes: a request in, an answer out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from service.api.open_inference import codec
from service.api.open_inference.codec import Answered, Asked
from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.models.ensemble import Ensemble
from service.serving import request_stats
from service.serving.metrics.metrics import Metrics
from service.serving.registry import ModelRegistry
from service.serving.types import Answer
from service.settings import AUTO, Settings

T = TypeVar("T")

LARGE = 256 * 1024  # bytes of a body that is parsed in a thread, while the event loop goes on
_OF_A_IMAGE = (TooLarge, UnreadableImage, UnsupportedType)


@dataclass(frozen=True, slots=True)
class Inferred:
    """An answer, and what came of each image on the way to it."""

    answered: Answered
    plan: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A model that is served, as Triton's index of a model repository has it."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inference:
    """Answers requests by the models of a catalogue, as /classify does."""

    model_registry: ModelRegistry
    settings: Settings
    metrics: Metrics
    parser: ThreadPoolExecutor = field(  # of one thread: several would take turns with the loop
        default_factory=lambda: ThreadPoolExecutor(1, "parse")
    )

    async def parse(self, nbytes: int, work: Callable[[], T]) -> T:
        """Do what parses so many bytes: at once, or in a thread if they are many."""
        if nbytes <= LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.parser, work)

    async def understand(self, nbytes: int, read: Callable[[], codec.Request]) -> Asked:
        """Check the request that `read` parses from so many bytes; raises what both raise."""
        most = self.settings.max_images_per_request
        return await self.parse(nbytes, lambda: codec.understand(read(), most))

    def ensemble(self, name: str, version: str) -> Ensemble:
        """Give what a model is, of any version if that is empty; raises what `find` does."""
        return self.model_registry.find(named(name, version)).ensemble

    def works(self, name: str, version: str) -> bool:
        """Tell whether a model can be asked; raises what `find` does."""
        return self.model_registry.find(named(name, version)).failure_reason is None

    def index(self, *, only_ready: bool) -> list[Indexed]:
        """List the models that are served, and say of each whether it is ready."""
        found = [
            Indexed(
                name,
                served.ensemble.version,
                "UNAVAILABLE" if served.failure_reason else "READY",
                served.failure_reason or "",
            )
            for name, served in self.model_registry.served.items()
        ]
        return [one for one in found if one.state == "READY" or not only_ready]

    async def infer(  # noqa: PLR0913 - all that is asked
        self,
        name: str,
        version: str,
        asked: Asked,
        *,
        seconds: float | None,
        background: bool = False,
        gone: Callable[[], Awaitable[None]] | None = None,
    ) -> Inferred:
        """Classify all images of a request; raises what is wrong with the first that fails.

        `seconds` is what the caller still has, if it has said so.
        """
        most = self.settings.timeout_seconds
        with self.model_registry.use(named(name, version)) as classifier:
            left = most if seconds is None else min(most, seconds)
            plan = asked.views or self.settings.views
            if plan == AUTO:
                plan = classifier.choose_views(len(asked.images), left, background=background)
            found = await classifier.classify(
                asked.images,
                plan=plan,
                top_k=asked.labels or 1,
                seconds=left,
                background=background,
                **({"gone": gone} if gone else {}),
            )
            served = classifier.ensemble
        request_stats.count(self.metrics, plan, found, background=background)
        good = _good(found)
        answered = Answered(
            asked.id,
            name,
            served.version,
            {"views": plan, **({"notice": served.notice} if served.notice else {})},
            _rankings(good) if asked.labels else _probabilities(good),
        )
        return Inferred(answered, plan, good)


def named(name: str, version: str) -> str:
    """Give what the catalogue calls a model by."""
    return f"{name}@{version}" if version and not name.endswith(f"@{version}") else name


def _good(found: Sequence[Answer | ServiceError]) -> list[Answer]:
    """Give the answers, or raise the first error: the protocol has one answer for all rows."""
    good: list[Answer] = []
    for row, answer in enumerate(found):
        if isinstance(answer, _OF_A_IMAGE) and len(found) > 1:
            raise type(answer)(f"row {row}: {answer}") from answer
        if isinstance(answer, ServiceError):
            raise answer
        good.append(answer)
    return good


def _probabilities(good: Sequence[Answer]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([answer.probabilities for answer in good]).astype(np.float32)


def _rankings(good: Sequence[Answer]) -> list[list[str]]:
    return [
        [codec.told(one.label, one.index, one.probability) for one in answer.predictions]
        for answer in good
    ]
