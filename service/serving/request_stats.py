"""Statistics of a request's answers: metrics, log fields, response headers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import ServiceError
from service.models.ensemble import Ensemble
from service.serving.metrics.metrics import Metrics
from service.serving.types import Answer, Timing

_NO_TIME = Timing(0.0, 0.0, 0.0, 0.0)  # of a request without answers


def count(
    metrics: Metrics,
    ensemble: Ensemble,
    plan: str,
    answers: Sequence[Answer | ServiceError],
    *,
    background: bool,
) -> None:
    """Count each image by its outcome, its answer, and the seconds of its stages."""
    for answer in answers:
        if isinstance(answer, ServiceError):
            metrics.image(plan, answer)
        else:
            metrics.image(plan)
            metrics.answered(ensemble, plan, answer.probabilities)
            if answer.cached:
                metrics.cache_hit()
                continue
            metrics.views(plan, answer.view_count)
            for stage, seconds in answer.timing.stages.items():
                metrics.stage(stage, seconds, background=background)


@dataclass(frozen=True, slots=True)
class Total:
    """A request's images: their number, and the slowest of them in each stage."""

    images: int
    stages: Mapping[str, float]  # seconds of each stage, of the image for which it took longest
    rows: int  # the most that shared a batch with one of the images
    cached: int  # images answered from the cache

    def notes(self, plan: str, uploaded: float) -> dict[str, Any]:
        """Return the fields for the request log; `uploaded` is the seconds of the upload."""
        return {
            "views": plan,
            "images": self.images,
            "upload": round(uploaded, 6),
            **{stage: round(seconds, 6) for stage, seconds in self.stages.items()},
            "batch_rows": self.rows,
            **({"cached": self.cached} if self.cached else {}),
        }

    def headers(self, *, caches: bool) -> dict[str, str]:
        """Return Server-Timing and, if results are cached, Cache-Status (RFC 9211)."""
        kept = "hit" if self.cached == self.images else "fwd=miss"
        status = {"Cache-Status": f"googlenet-service; {kept}"} if caches else {}
        return {"Server-Timing": self._server_timing, **status}

    @property
    def _server_timing(self) -> str:
        """The stages' milliseconds, and the rows of the batch."""
        durations = [f"{stage};dur={1000 * took:.2f}" for stage, took in self.stages.items()]
        return ", ".join([*durations, f'batch;desc="{self.rows} row{"s" * (self.rows != 1)}"'])


def add_up(answers: Sequence[Answer | ServiceError]) -> Total:
    """Sum up a request's answers."""
    answered = [answer for answer in answers if isinstance(answer, Answer)]
    stages = [timing.stages for timing in (_NO_TIME, *(answer.timing for answer in answered))]
    return Total(
        len(answers),
        {stage: max(seconds[stage] for seconds in stages) for stage in _NO_TIME.stages},
        max((answer.batch_rows for answer in answered), default=0),
        sum(answer.cached for answer in answered),
    )
