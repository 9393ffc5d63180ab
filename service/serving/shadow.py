"""A candidate that is asked beside the default, so that it can be judged before it is preferred.

It is asked for a share of what the default has answered already, one request at a time: what comes
meanwhile is left out, so that it never keeps the default from more than that one takes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from service.errors import ServiceError
from service.models.ensemble import Prediction
from service.serving.registry import ModelRegistry
from service.serving.types import Answer

logger = logging.getLogger(__name__)

Outcome = Literal["agreed", "differed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a candidate said of an image, beside what the default did."""

    outcome: Outcome
    distance: float | None = None  # the most that a probability of the default's labels differs


def compare(default: Sequence[Prediction], candidate: Sequence[Prediction]) -> Comparison:
    """Compare rankings; `candidate` is of all its labels, which need not be the same."""
    told = {(one.wnid, one.label): one.probability for one in candidate}
    distance = max(abs(one.probability - told.get((one.wnid, one.label), 0.0)) for one in default)
    same = (default[0].wnid, default[0].label) == (candidate[0].wnid, candidate[0].label)
    return Comparison("agreed" if same else "differed", distance)


class ShadowCandidate:
    """Asks `candidate` for a `share` of the default's requests while it is entered."""

    def __init__(
        self,
        model_registry: ModelRegistry,
        report: Callable[[Comparison], None],
        *,
        candidate: str | None,
        share: float,
        seconds: float,
    ) -> None:
        self._catalogue, self._report, self._seconds = model_registry, report, seconds
        self._candidate, self._share = candidate, share
        model_registry.exclude_from_probes(candidate if share else None)
        self._due = 0.0  # requests, of which a whole one is to be asked
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    @property
    def share(self) -> tuple[str, float] | None:
        """The candidate and the share of requests that it is asked for, if there is one."""
        candidate = self._catalogue.candidate
        if candidate is None or candidate not in self._catalogue.served:
            return None
        return candidate, self._share

    def follow(self, candidate: str, share: float) -> None:
        """Ask another candidate from now on, or for another share of the requests; 0 ends it."""
        if share or candidate == self._candidate:
            self._candidate, self._share = candidate, share
            self._catalogue.exclude_from_probes(candidate if share else None)

    def offer(
        self, images: Sequence[bytes], plan: str, answers: Sequence[Answer | ServiceError]
    ) -> None:
        """Have the candidate asked what the default has answered, if it is its turn."""
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
        if self._asking and not self._asking.done():
            for _ in pairs:
                self._report(Comparison("skipped"))
            return
        self._asking = asyncio.create_task(self._ask(candidate, pairs, plan))

    async def _ask(
        self, candidate: str, pairs: Sequence[tuple[bytes, tuple[Prediction, ...]]], plan: str
    ) -> None:
        found: Sequence[Answer | Exception]
        try:
            with self._catalogue.use(candidate) as classifier:
                found = await classifier.classify(
                    [image for image, _ in pairs],
                    plan=plan,
                    top_k=len(classifier.ensemble.labels),
                    seconds=self._seconds,
                )
        except Exception as error:  # noqa: BLE001 - whatever a candidate does, nobody waits for it
            found = [error] * len(pairs)
        for (_, default), answer in zip(pairs, found, strict=True):
            if isinstance(answer, Answer):
                self._report(compare(default, answer.predictions))
            else:
                logger.info("%s did not answer: %s", candidate, answer)
                self._report(Comparison("failed"))
