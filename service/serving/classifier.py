"""The classifier: images to rankings with a model that is loaded.

Admits or refuses a request, has its images decoded, submits their rows to the batcher, and ranks
the results, all before the request's deadline.
"""

import asyncio
import functools
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

from service.errors import DeadlineExceeded, NotExplainable, ServiceError
from service.imaging.activation_map import Activation, Grid
from service.imaging.image_decoder import Bounds, ImageInput, is_view
from service.models.ensemble import Ensemble, Result, ViewJobs
from service.scheduling.batcher import Batcher
from service.scheduling.reservation import Reservation
from service.scheduling.types import JobSpec
from service.serving import adaptive_views
from service.serving.adaptive_views import ViewsLately
from service.serving.backend import Backend, Payload
from service.serving.background_decode import DecodeTurns
from service.serving.disconnects import never, run_until_gone
from service.serving.result_cache import CachedResult, ResultCache, key_in_background
from service.serving.types import Answer, Explanation, Limits, Timing
from service.settings import PlanName

T = TypeVar("T")

_BATCHES_AHEAD = 3  # of each executor: one runs, one is queued, one is being decoded
_MOST_VIEWS_FIRST: tuple[PlanName, ...] = ("paper", "ten")
_FEWEST_VIEWS: PlanName = "single"
_AMPLE = 0.25  # of a request's time, and of the memory for payloads
_FROM_CACHE = (0.0, 0.0, 0.0)  # seconds of the stages


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be done with each image of a request."""

    views: str
    jobs: ViewJobs
    top_k: int
    background: bool
    deadline: float  # by time.monotonic()
    features: bool  # whether they are asked for, too


Reservations = Sequence[Reservation[Payload, Result]]


class Classifier:
    """Classifies and explains images with a backend's ensemble."""

    def __init__(self, backend: Backend, batcher: Batcher[Payload, Result], limits: Limits) -> None:
        self._backend, self._batcher, self._limits = backend, batcher, limits
        self._decoding = DecodeTurns(backend.decode_wait, limits.decoders)
        self._jobs = functools.cache(backend.ensemble.jobs)
        self._cache = ResultCache(limits.cache_bytes) if limits.cache_bytes else None
        self._lately: defaultdict[str, ViewsLately] = defaultdict(ViewsLately)  # by view plan

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble that classifies."""
        return self._backend.ensemble

    @property
    def cached(self) -> int:
        """The bytes of cached results."""
        return self._cache.nbytes if self._cache else 0

    def concurrency(self, plan: str, decoding: int) -> int:
        """Return how many images at a time keep every executor and `decoding` threads busy."""
        specs = self._jobs(plan).specs
        largest = max(self.ensemble.costs.largest(spec.key) for spec in specs)
        rows = sum(spec.rows for spec in specs)
        most = math.ceil(_BATCHES_AHEAD * len(self._backend.executors) * largest / rows) + decoding
        nbytes = sum(spec.nbytes for spec in specs)
        return max(1, min(most, self._limits.max_queue_bytes // nbytes))

    def choose_views(self, images: int, seconds: float, *, background: bool = False) -> PlanName:
        """Choose the most views for which there is ample time and memory at the present load.

        These are a quarter of the time and the memory: as the load grows, every request gets fewer
        views before any is refused.
        """
        decode_wait = self._decoding.decode_wait(images, background=background)
        for name in _MOST_VIEWS_FIRST:
            specs = self._jobs(name).specs * images
            done_in, filled = self._batcher.predict(
                specs, decode_wait=decode_wait, background=background
            )
            if done_in <= _AMPLE * seconds and filled <= _AMPLE:
                return name
        return _FEWEST_VIEWS

    def admit(
        self,
        *,
        plan: str,
        seconds: float,
        images: int = 1,
        maps: bool = False,
        background: bool = False,
    ) -> None:
        """Raise what a request with so many images would be refused with now.

        With `maps`, it is admitted for both its classification and its explanation.
        """
        jobs = self._jobs(plan)
        specs = [*self._lately[plan].specs(jobs)] * images
        self._batcher.admit(
            [*specs, *jobs.maps] if maps and self.ensemble.explains else specs,
            seconds,
            decode_wait=self._decoding.decode_wait(images, background=background),
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
        features: bool = False,
        gone: Callable[[], Awaitable[None]] = never,
    ) -> list[Answer | ServiceError]:
        """Rank each image's labels, or return its error, within `seconds`.

        Images of `background` requests have low priority, and a share of the time while others
        wait. With `features`, answers have those, too; not of views that may stop early. Raises,
        for all images, `NoFeatures`, `Overloaded` or `DeadlineExceeded` if they are refused at
        once, and `ClientDisconnected` when `gone()` returns first: rows that are queued then are
        not run.
        """
        if features:
            self.ensemble.check_features()
        deadline = time.monotonic() + seconds
        request = _Request(plan, self._jobs(plan), top_k, background, deadline, features)
        if self._cache is None:
            return await self._compute(images, request, gone)
        kept = f"{plan} features" if features else plan
        keys = [await key_in_background(image, kept) for image in images]
        known = {key: cached for key in keys if (cached := self._cache.get(key)) is not None}
        missing = [image for key, image in zip(keys, images, strict=True) if key not in known]
        computed = iter(await self._compute(missing, request, gone) if missing else ())
        answers: list[Answer | ServiceError] = []
        for key in keys:
            answer = self._cached(known[key], top_k) if key in known else next(computed)
            if isinstance(answer, Answer) and not answer.cached:
                result = CachedResult(answer.probabilities, answer.view_count, answer.features)
                self._cache.put(key, result)
            answers.append(answer)
        return answers

    def _cached(self, result: CachedResult, top_k: int) -> Answer:
        timing = Timing(time.monotonic(), *_FROM_CACHE)
        ranking = self.ensemble.best(result.probabilities, top_k)
        return Answer(ranking, timing, 0, *result, cached=True)

    async def _compute(
        self,
        images: Sequence[ImageInput],
        request: _Request,
        gone: Callable[[], Awaitable[None]],
    ) -> list[Answer | ServiceError]:
        specs = [spec for image in images for spec in self._specs(image, request)]
        with self._batcher.reserve(
            specs,
            request.deadline,
            decode_wait=self._decoding.decode_wait(len(images), background=request.background),
            background=request.background,
        ) as reservations:
            count = len(specs) // len(images)
            works = []
            for index, image in enumerate(images):
                own = reservations[index * count : (index + 1) * count]
                work = partial(self._answer, image, request, own)
                works.append(self._settle(work, own, request.deadline))
            return await run_until_gone(gone, works)

    async def explain(
        self,
        image: bytes,
        *,
        plan: str,
        index: int | None,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = never,
    ) -> Explanation:
        """Compute an image's class activation maps, by default of its most probable class.

        Raises what `classify` raises or returns, and `NotExplainable`.
        """
        deadline = time.monotonic() + seconds
        ensemble = self.ensemble
        if not ensemble.explains:
            raise NotExplainable(f"{ensemble.name} has no class activation maps; use another model")
        self.admit(plan=plan, seconds=seconds, maps=True)
        (answer,) = await self.classify(
            [image], plan=plan, top_k=len(ensemble.labels), seconds=seconds, gone=gone
        )
        if isinstance(answer, ServiceError):
            raise answer
        by_index = {prediction.index: prediction for prediction in answer.predictions}
        prediction = answer.predictions[0] if index is None else by_index[index]
        with self._batcher.reserve(
            self._jobs(plan).maps, deadline, decode_wait=self._backend.decode_wait(1)
        ) as reservations:
            work = partial(self._activations, image, plan, prediction.index, reservations, deadline)
            (maps,) = await run_until_gone(gone, [self._settle(work, reservations, deadline)])
        if isinstance(maps, ServiceError):
            raise maps
        return Explanation(prediction, maps)

    async def paint(
        self,
        image: bytes,
        heat: Grid,
        *,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = never,
    ) -> bytes:
        """Draw a heat map over an image: a PNG file; raises what `classify` raises or returns."""
        deadline = time.monotonic() + seconds
        work = partial(self._backend.paint, image, heat, self._bounds(deadline))
        (drawn,) = await run_until_gone(gone, [self._settle(work, (), deadline)])
        if isinstance(drawn, ServiceError):
            raise drawn
        return drawn

    async def _settle(
        self,
        work: Callable[[], Awaitable[T]],
        reservations: Reservations,
        deadline: float,
    ) -> T | ServiceError:
        """Do an image's work by its deadline; return its error and release its reservations."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await work()
        except TimeoutError:
            return DeadlineExceeded("the result was not ready before the deadline")
        except ServiceError as error:
            for reservation in reservations:
                self._batcher.release(reservation)
            return error

    async def _answer(
        self, image: ImageInput, request: _Request, reservations: Reservations
    ) -> Answer:
        started = time.monotonic()
        async with self._decoding.turn(background=request.background):
            bounds = self._bounds(request.deadline)
            how = request.views, bounds
            payloads = await self._backend.prepare(image, *how, features=request.features)
        decoded = time.monotonic() - started
        look = await adaptive_views.look(self._batcher, request.jobs, reservations, payloads)
        if request.jobs.has_stops:
            self._lately[request.views] = self._lately[request.views].observed(look.share)
        probabilities, features = self.ensemble.split(look.average, features=request.features)
        return Answer(
            self.ensemble.best(probabilities, request.top_k),
            look.timing(started, decoded),
            look.batch_rows,
            probabilities,
            look.view_count,
            features,
        )

    async def _activations(
        self,
        image: bytes,
        views: str,
        target: int,
        reservations: Reservations,
        deadline: float,
    ) -> tuple[Activation, ...]:
        payloads = await self._backend.prepare(image, views, self._bounds(deadline), target)
        outcome = await self._batcher.submit(reservations[0], payloads[0])
        return tuple(cast("Activation", part) for part in outcome.parts)

    def _specs(self, image: ImageInput, request: _Request) -> Sequence[JobSpec]:
        if is_view(image):  # others become uint8 pixels
            return self.ensemble.specs(request.jobs.plans, itemsize=image.itemsize)
        return self._lately[request.views].specs(request.jobs)

    def _bounds(self, deadline: float) -> Bounds:
        """Return decoding limits that end by the deadline: a thread cannot be cancelled."""
        seconds = min(self._limits.image.seconds, deadline - time.monotonic())
        return replace(self._limits.image, seconds=seconds)
