"""Views that are looked at as far as an image needs them: its stages, and what images lately took.

A view plan with stops has several stages (`service.imaging.crops.Plan.stages`). Their rows are
queued one stage after the other, of an image that is decoded once; the last stage is the one after
which the mean is sure (`service.models.stopping_rule`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from service.errors import ServiceError
from service.models.ensemble import ByView, Probabilities, Result, ViewJobs, mean
from service.scheduling.batcher import Batcher
from service.scheduling.reservation import Reservation
from service.scheduling.types import JobSpec, Outcome
from service.serving.backend import Payload
from service.serving.types import Timing

Reservations = Sequence[Reservation[Payload, Result]]

_AT_FIRST = 0.35  # of an image's views, on photos like ImageNet's
_RATE = 0.02  # weight of each image in the moving average


@dataclass(frozen=True, slots=True)
class ViewsLately:
    """How many of a plan's views images lately took: a moving average, for admission."""

    share: float = _AT_FIRST  # from 0 to 1

    def observed(self, share: float) -> "ViewsLately":
        """Update the average with one image."""
        return ViewsLately(self.share + _RATE * (share - self.share))

    def specs(self, jobs: ViewJobs) -> list[JobSpec]:
        """Return what to reserve for an image: the first stages, then as much as is expected more.

        One of each for a member; without stops, all of its views.
        """
        if not jobs.has_stops:
            return [*jobs.specs]
        first, more = [], []
        for plan, spec in zip(jobs.plans, jobs.specs, strict=True):
            begun = len(plan.stages[0])
            expected = round(self.share * spec.rows)
            first.append(JobSpec(spec.key, begun, 0))
            more.append(JobSpec(spec.key, max(1, expected - begun), spec.nbytes))
        return [*first, *more]


@dataclass(eq=False, slots=True)
class Look:
    """The stages of one image, and their results."""

    jobs: ViewJobs
    outcomes: list[list[Outcome[Result]]] = field(default_factory=list)  # of each stage
    average: Probabilities = field(init=False)
    """The mean over all views so far, then over members: (classes,)."""
    _results: list[list[Probabilities | ByView]] = field(init=False)  # by member, of each slice

    def __post_init__(self) -> None:
        self._results = [[] for _ in self.jobs.plans]

    @property
    def members(self) -> list[int]:
        """The members whose plan has another stage."""
        stage = len(self.outcomes)
        return [n for n, plan in enumerate(self.jobs.plans) if stage < len(plan.stages)]

    def spec(self, member: int) -> JobSpec:
        """Return the job of a member's next stage."""
        spec, views = self.jobs.specs[member], self.jobs.plans[member].stages[len(self.outcomes)]
        return JobSpec(spec.key, len(views), spec.nbytes, views.start)

    def add(self, outcomes: Sequence[Outcome[Result]]) -> None:
        """Add the results of a stage, in the order of its members."""
        for member, outcome in zip(self.members, outcomes, strict=True):
            self._results[member] += cast("tuple[Probabilities | ByView, ...]", outcome.parts)
        self.outcomes.append([*outcomes])
        self.average = mean(self._results, self._counts)

    @property
    def is_done(self) -> bool:
        """Whether no more views are needed."""
        if not self.members:
            return True
        return self.jobs.rule.is_sure(self.average, [np.vstack(parts) for parts in self._results])

    @property
    def view_count(self) -> int:
        """The views that were looked at, of the member with most."""
        return max(self._counts)

    @property
    def share(self) -> float:
        """The share of the views that were looked at, above 0 to 1."""
        return self.view_count / max(spec.rows for spec in self.jobs.specs)

    @property
    def _counts(self) -> list[int]:
        last = len(self.outcomes) - 1
        return [plan.stages[min(last, len(plan.stages) - 1)].stop for plan in self.jobs.plans]

    def timing(self, started: float, decode: float) -> Timing:
        """Return the seconds of the image's stages."""
        queue = min(outcome.queue_seconds for outcome in self.outcomes[0])
        total = sum(
            max(outcome.queue_seconds + outcome.run_seconds for outcome in stage)
            for stage in self.outcomes
        )
        return Timing(started, decode, queue, total - queue)

    @property
    def batch_rows(self) -> int:
        """The rows of the largest batch that one of its stages was in."""
        return max(outcome.batch_rows for stage in self.outcomes for outcome in stage)


async def look(
    batcher: Batcher[Payload, Result],
    jobs: ViewJobs,
    reservations: Reservations,
    payloads: Sequence[Payload],
) -> Look:
    """Compute an image's views, stage after stage, until the plan's rule is sure.

    `reservations` are those of `ViewsLately.specs`, `payloads` one of each member. Raises what
    `Batcher.submit` does.
    """
    looked, count = Look(jobs), len(payloads)
    current, more = reservations[:count], dict(enumerate(reservations[count:]))
    while True:
        members = looked.members
        looked.add(await _submit(batcher, current, [payloads[member] for member in members]))
        if looked.is_done:
            break
        more = {n: batcher.follow(more[n], looked.spec(n)) for n in looked.members}
        current = [*more.values()]
    for reservation in more.values():
        batcher.release(reservation)
    return looked


async def _submit(
    batcher: Batcher[Payload, Result], reservations: Reservations, payloads: Sequence[Payload]
) -> list[Outcome[Result]]:
    """Submit an image's jobs, one a member; the first error cancels the others."""
    if len(payloads) == 1:
        return [await batcher.submit(reservations[0], payloads[0])]
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(batcher.submit(reservation, payload))
                for reservation, payload in zip(reservations, payloads, strict=True)
            ]
    except* ServiceError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]
