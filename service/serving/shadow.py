"""Shadow traffic: a candidate model gets a share of the default's requests, for comparison.

Requests are sent after the default has answered them, one at a time; others are skipped meanwhile,
so that the candidate never delays the default by more than one request.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from service.errors import ServiceError
from service.imaging.image_decoder import ImageInput
from service.models.ensemble import Prediction
from service.serving.registry import ModelRegistry
from service.serving.types import Answer

logger = logging.getLogger(__name__)

Outcome = Literal["agreed", "differed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate's result for an image compared with the default's."""

    outcome: Outcome
    distance: float | None = None  # the largest difference of a probability of the default's labels


def compare(default: Sequence[Prediction], candidate: Sequence[Prediction]) -> Comparison:
    """Compare rankings; `candidate` is of all its labels, which need not be the same."""
    probabilities = {(label.wnid, label.label): label.probability for label in candidate}
    distance = max(
        abs(label.probability - probabilities.get((label.wnid, label.label), 0.0))
        for label in default
    )
    same = (default[0].wnid, default[0].label) == (candidate[0].wnid, candidate[0].label)
    return Comparison("agreed" if same else "differed", distance)


class ShadowCandidate:
    """Sends `candidate` a `share` of the default's requests while it is entered."""

    def __init__(
        self,
        model_registry: ModelRegistry,
        report: Callable[[Comparison], None],
        *,
        candidate: str | None,
        share: float,
        seconds: float,
    ) -> None:
        self._registry, self._report, self._seconds = model_registry, report, seconds
        self._candidate, self._share = candidate, share
        model_registry.readiness.exclude(candidate if share else None)
        self._due = 0.0  # requests; one is sent when it reaches 1
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @property
    def share(self) -> tuple[str, float] | None:
        """The candidate and its share of the requests, if there is one."""
        candidate = self._registry.readiness.candidate
        if candidate is None or candidate not in self._registry.served:
            return None
        return candidate, self._share

    def follow(self, candidate: str, share: float) -> None:
        """Change the candidate, or its share of the requests; 0 ends it."""
        if share or candidate == self._candidate:
            self._candidate, self._share = candidate, share
            self._registry.readiness.exclude(candidate if share else None)

    def offer(
        self, images: Sequence[ImageInput], plan: str, answers: Sequence[Answer | ServiceError]
    ) -> None:
        """Send the candidate a request that the default has answered, if one is due."""
        if (chosen := self.share) is None:
            return
        pairs = [
            (image, answer.predictions)
            for image, answer in zip(images, answers, strict=True)
            if isinstance(answer, Answer)
        ]
        if not pairs:
            return
        candidate, share = chosen
        self._due += share
        if self._due < 1:
            return
        self._due -= 1
        if self._running and not self._running.done():
            for _ in pairs:
                self._report(Comparison("skipped"))
            return
        self._running = asyncio.create_task(self._send(candidate, pairs, plan))

    async def _send(
        self, candidate: str, pairs: Sequence[tuple[ImageInput, tuple[Prediction, ...]]], plan: str
    ) -> None:
        answers: Sequence[Answer | Exception]
        try:
            with self._registry.use(candidate) as classifier:
                answers = await classifier.classify(
                    [image for image, _ in pairs],
                    plan=plan,
                    top_k=len(classifier.ensemble.labels),
                    seconds=self._seconds,
                )
        except Exception as error:  # noqa: BLE001 - a candidate's failure affects no client
            answers = [error] * len(pairs)
        for (_, default), answer in zip(pairs, answers, strict=True):
            if isinstance(answer, Answer):
                self._report(compare(default, answer.predictions))
            else:
                logger.info("shadow request to %s failed: %s", candidate, answer)
                self._report(Comparison("failed"))
