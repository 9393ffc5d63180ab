"""Images in, rankings out: what is done for requests with a model that is loaded.

Admits or refuses, has images decoded, hands rows to the batcher, and ranks what comes back, all
within the request's deadline.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from service.errors import ClientDisconnected, DeadlineExceeded, NotExplainable, ServiceError
from service.imaging.activation_map import Activation, Grid
from service.imaging.crops import Plan
from service.imaging.image_decoder import Bounds, ImageInput, is_view
from service.models.ensemble import Ensemble, Probabilities, Result, mean
from service.scheduling.batcher import Batcher, Reservation
from service.scheduling.types import JobSpec, Outcome
from service.serving import result_cache
from service.serving.backend import Backend, Payload
from service.serving.background_decode import DecodeTurns
from service.serving.result_cache import Cache
from service.serving.types import Answer, Explanation, Limits, Timing
from service.settings import PlanName

T = TypeVar("T")

_AHEAD = 3  # batches of each lane: one runs, one waits for it, one is being decoded
_MOST_FIRST: tuple[PlanName, ...] = ("paper", "ten")
_FEWEST: PlanName = "single"
_AMPLE = 0.25  # of the time that a request has, and of the memory of all
_LONG = 256 * 1024  # bytes, which take a third of a millisecond to read


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks of each of its images."""

    views: str
    plans: Sequence[Plan]
    top_k: int
    background: bool


async def _never() -> None:
    await asyncio.Event().wait()


class Classifier:
    """Answers requests with an ensemble, by who does its work."""

    def __init__(self, backend: Backend, batcher: Batcher[Payload, Result], limits: Limits) -> None:
        self._backend, self._batcher, self._limits = backend, batcher, limits
        self._rounds = DecodeTurns(backend.decode_wait, limits.decoders)
        self._cache = Cache(limits.cache_bytes) if limits.cache_bytes else None

    @property
    def ensemble(self) -> Ensemble:
        """What answers."""
        return self._backend.ensemble

    @property
    def cached(self) -> int:
        """How many bytes of answers are kept."""
        return self._cache.nbytes if self._cache else 0

    def concurrency(self, plan: str, decoding: int) -> int:
        """Say how many images at a time keep every lane, and so many decoders, at work."""
        ensemble = self.ensemble
        specs = ensemble.specs(ensemble.plans(plan))
        largest = max(ensemble.costs.largest(spec.key) for spec in specs)
        rows = sum(spec.rows for spec in specs)
        most = math.ceil(_AHEAD * len(self._backend.executors) * largest / rows) + decoding
        nbytes = sum(spec.nbytes for spec in specs)
        return max(1, min(most, self._limits.max_queue_bytes // nbytes))

    def choose_views(self, images: int, seconds: float, *, background: bool = False) -> PlanName:
        """Choose the most views for which there is ample time, by the present load.

        A part of the time and of the memory only, so that others still find room: as the load
        grows everybody gets fewer views, before anybody is refused.
        """
        decode_wait = self._rounds.decode_wait(images, background=background)
        for name in _MOST_FIRST:
            specs = self.ensemble.specs(self.ensemble.plans(name)) * images
            done_in, filled = self._batcher.predict(
                specs, decode_wait=decode_wait, background=background
            )
            if done_in <= _AMPLE * seconds and filled <= _AMPLE:
                return name
        return _FEWEST

    def check(
        self, *, plan: str, seconds: float, maps: bool = False, background: bool = False
    ) -> None:
        """Raise at once what even a single image would be refused with.

        If it is to be explained, both parts of the work are looked at.
        """
        ensemble = self.ensemble
        specs = ensemble.specs(plans := ensemble.plans(plan))
        if maps and ensemble.explains:
            specs += ensemble.specs(plans, maps=True)
        self._batcher.check(
            specs,
            seconds,
            decode_wait=self._rounds.decode_wait(1, background=background),
            background=background,
        )

    async def classify(  # noqa: PLR0913 - all that is asked
        self,
        images: Sequence[ImageInput],
        *,
        plan: str,
        top_k: int,
        seconds: float,
        background: bool = False,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> list[Answer | ServiceError]:
        """Rank each image's labels, or say what is wrong with it, within `seconds`.

        Images of `background` let others pass, and have a share of the time while others wait.
        Raises, for all of them, `Overloaded` or `DeadlineExceeded` if they are refused at once, and
        `ClientDisconnected` when `gone()` returns first: whatever has not run by then costs nothing
        more.
        """
        deadline = time.monotonic() + seconds
        wanted = _Wanted(plan, self.ensemble.plans(plan), top_k, background)
        if self._cache is None:
            return await self._compute(images, wanted, deadline, gone)
        names = [await _named(image, plan) for image in images]
        known = {one: kept for one in names if (kept := self._cache.find(one)) is not None}
        others = [image for one, image in zip(names, images, strict=True) if one not in known]
        found = iter(await self._compute(others, wanted, deadline, gone) if others else ())
        answers: list[Answer | ServiceError] = []
        for one in names:
            answer = self._kept(known[one], top_k) if one in known else next(found)
            if isinstance(answer, Answer) and not answer.cached:
                self._cache.keep(one, answer.probabilities)
            answers.append(answer)
        return answers

    def _kept(self, probabilities: Probabilities, top_k: int) -> Answer:
        nothing = Timing(time.monotonic(), 0.0, 0.0, 0.0)
        ranking = self.ensemble.best(probabilities, top_k)
        return Answer(ranking, nothing, 0, probabilities, cached=True)

    async def _compute(
        self,
        images: Sequence[ImageInput],
        wanted: _Wanted,
        deadline: float,
        gone: Callable[[], Awaitable[None]],
    ) -> list[Answer | ServiceError]:
        specs = [spec for one in images for spec in self._demands(one, wanted.plans)]
        decode_wait = self._rounds.decode_wait(len(images), background=wanted.background)
        with self._batcher.reserve(
            specs, deadline, decode_wait=decode_wait, background=wanted.background
        ) as reservations:
            count = len(wanted.plans)
            mine = [reservations[at : at + count] for at in range(0, len(reservations), count)]
            return await _unless(
                gone,
                [
                    self._settle(partial(self._answer, image, wanted, own, deadline), own, deadline)
                    for image, own in zip(images, mine, strict=True)
                ],
            )

    async def explain(
        self,
        image: bytes,
        *,
        plan: str,
        index: int | None,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> Explanation:
        """Tell what each place of an image adds to a class, by default the most probable one.

        Raises what `classify` raises or gives, and `NotExplainable`.
        """
        deadline = time.monotonic() + seconds
        ensemble = self.ensemble
        if not ensemble.explains:
            raise NotExplainable(f"{ensemble.name} has no class activation maps; ask another model")
        self.check(plan=plan, seconds=seconds, maps=True)
        (answer,) = await self.classify(
            [image], plan=plan, top_k=len(ensemble.labels), seconds=seconds, gone=gone
        )
        if isinstance(answer, ServiceError):
            raise answer
        told = {one.index: one for one in answer.predictions}
        prediction = answer.predictions[0] if index is None else told[index]
        specs = ensemble.specs(ensemble.plans(plan), maps=True)
        with self._batcher.reserve(
            specs, deadline, decode_wait=self._backend.decode_wait(1)
        ) as reservations:
            work = partial(self._activations, image, plan, prediction.index, reservations, deadline)
            (found,) = await _unless(gone, [self._settle(work, reservations, deadline)])
        if isinstance(found, ServiceError):
            raise found
        return Explanation(prediction, found)

    async def paint(
        self,
        image: bytes,
        heat: Grid,
        *,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> bytes:
        """Draw a heat map over an image: a PNG file; raises what `classify` raises or gives."""
        deadline = time.monotonic() + seconds
        work = partial(self._backend.paint, image, heat, self._bounds(deadline))
        (drawn,) = await _unless(gone, [self._settle(work, (), deadline)])
        if isinstance(drawn, ServiceError):
            raise drawn
        return drawn

    async def _settle(
        self,
        work: Callable[[], Awaitable[T]],
        reservations: Sequence[Reservation[Payload, Result]],
        deadline: float,
    ) -> T | ServiceError:
        """Do an image's work by its deadline; gives what is wrong, and its seats back."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await work()
        except TimeoutError:
            return DeadlineExceeded("the answer did not come before the deadline")
        except ServiceError as error:
            for reservation in reservations:
                self._batcher.release(reservation)
            return error

    async def _answer(
        self,
        image: ImageInput,
        wanted: _Wanted,
        reservations: Sequence[Reservation[Payload, Result]],
        deadline: float,
    ) -> Answer:
        started = time.monotonic()
        async with self._rounds.turn(background=wanted.background):
            payloads = await self._backend.prepare(image, wanted.views, self._bounds(deadline))
        decoded = time.monotonic() - started
        outcomes = await self._together(reservations, payloads)
        queued = min(outcome.queue_seconds for outcome in outcomes)
        done = max(outcome.queue_seconds + outcome.run_seconds for outcome in outcomes)
        parts = [cast("tuple[Probabilities, ...]", outcome.parts) for outcome in outcomes]
        average = mean(parts, wanted.plans)
        return Answer(
            self.ensemble.best(average, wanted.top_k),
            Timing(started, decoded, queued, done - queued),
            max(outcome.batch_rows for outcome in outcomes),
            average,
        )

    async def _activations(
        self,
        image: bytes,
        views: str,
        target: int,
        reservations: Sequence[Reservation[Payload, Result]],
        deadline: float,
    ) -> tuple[Activation, ...]:
        payloads = await self._backend.prepare(image, views, self._bounds(deadline), target)
        (outcome,) = await self._together(reservations, payloads)
        return tuple(cast("Activation", part) for part in outcome.parts)

    def _demands(self, image: ImageInput, plans: Sequence[Plan]) -> list[JobSpec]:
        itemsize = image.itemsize if is_view(image) else 1  # else it becomes uint8 pixels
        return self.ensemble.specs(plans, itemsize=itemsize)

    async def _together(
        self, reservations: Sequence[Reservation[Payload, Result]], payloads: Sequence[Payload]
    ) -> list[Outcome[Result]]:
        """Submit an image's jobs, one a member; the first error ends them all."""
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._batcher.submit(reservation, payload))
                    for reservation, payload in zip(reservations, payloads, strict=True)
                ]
        except* ServiceError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in running]

    def _bounds(self, deadline: float) -> Bounds:
        """Bound decoding by the deadline, too: a thread cannot be stopped from here."""
        most = min(self._limits.image.seconds, deadline - time.monotonic())
        return replace(self._limits.image, seconds=most)


async def _unless(
    gone: Callable[[], Awaitable[None]], works: Sequence[Coroutine[Any, Any, T]]
) -> list[T]:
    """Await all; when `gone()` returns first, cancel them and raise `ClientDisconnected`."""
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_leave_with(gone))
            doing = [tasks.create_task(work) for work in works]
            await asyncio.wait(doing)
            watching.cancel()
    except* ClientDisconnected:
        raise ClientDisconnected("the caller hung up before the answer was there") from None
    return [one.result() for one in doing]


async def _leave_with(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
    raise ClientDisconnected


async def _named(image: ImageInput, plan: str) -> bytes:
    """Name an image's answer; a large one in a thread, for it would keep the loop."""
    if len(image) > _LONG or not isinstance(image, bytes):
        return await asyncio.to_thread(result_cache.name, image, plan)
    return result_cache.name(image, plan)
