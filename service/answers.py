"""What the answers of a request add up to: counts, the stages' times, a line of the log."""

from collections.abc import Sequence
from typing import Any

from service.classifier import Answer, Timing
from service.errors import ServiceError
from service.metrics import Metrics

_NOTHING = Timing(0.0, 0.0, 0.0, 0.0)  # of what was not done


def count(metrics: Metrics, plan: str, answers: Sequence[Answer | ServiceError]) -> None:
    """Count each picture by what came of it, and where its time went."""
    for answer in answers:
        if isinstance(answer, ServiceError):
            metrics.image(plan, answer)
        else:
            metrics.image(plan)
            for stage, seconds in answer.timing.stages.items():
                metrics.stage(stage, seconds)


def longest(answers: Sequence[Answer | ServiceError]) -> dict[str, float]:
    """Give the seconds that each stage took for the picture for which it took longest."""
    answered = [answer.timing for answer in answers if isinstance(answer, Answer)]
    stages = [timing.stages for timing in (_NOTHING, *answered)]
    return {stage: max(one[stage] for one in stages) for stage in _NOTHING.stages}


def notes(plan: str, uploaded: float, answers: Sequence[Answer | ServiceError]) -> dict[str, Any]:
    """Say in a log's words what was done; `uploaded` is the seconds of the upload."""
    return {
        "views": plan,
        "pictures": len(answers),
        "upload": round(uploaded, 6),
        **{stage: round(seconds, 6) for stage, seconds in longest(answers).items()},
        "batch_rows": rows(answers),
    }


def rows(answers: Sequence[Answer | ServiceError]) -> int:
    """Give the most rows that shared a batch with one of the pictures."""
    return max((one.batch_rows for one in answers if isinstance(one, Answer)), default=0)


def server_timing(answers: Sequence[Answer | ServiceError]) -> str:
    """Give the `Server-Timing` header: the stages' milliseconds, and the rows of the batch."""
    stages = longest(answers).items()
    durations = [f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages]
    count = rows(answers)
    return ", ".join([*durations, f'batch;desc="{count} row{"s" * (count != 1)}"'])
