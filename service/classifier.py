"""One picture in, one ranking out.

Loads the model in the background, admits or refuses, has pictures decoded, hands rows to the
batcher, and ranks what comes back, all within the request's deadline.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar, cast

from service import cache
from service.batcher import Batcher, Seat
from service.cache import Cache
from service.ensemble import Backend, Ensemble, Payload, Prediction, Probabilities, Result, mean
from service.errors import CallerGone, DeadlineExceeded, NotExplainable, NotReady, ServiceError
from service.explanation import Activation, Grid
from service.images import Bounds, Picture, is_view
from service.settings import BULK_SHARE, PlanName
from service.views import Plan
from service.work import Backlog, Demand, Outcome, Report

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOADING_RETRY = 5.0  # seconds; nobody knows how long a first load takes
_AHEAD = 3  # batches of each lane: one runs, one waits for it, one is being decoded
_MOST_FIRST: tuple[PlanName, ...] = ("paper", "ten")
_FEWEST: PlanName = "single"
_AMPLE = 0.25  # of the time that a request has, and of the memory of all
_LONG = 256 * 1024  # bytes, which take a third of a millisecond to read
_FAILURES = 3  # batches in a row, after which the device is not expected to recover


@dataclass(frozen=True, slots=True)
class Limits:
    """The classifier's bounds; see `service.settings` for each."""

    picture: Bounds
    max_queue_bytes: int
    stall_seconds: float
    cache_bytes: int = 0
    bulk_share: float = BULK_SHARE
    decoders: int = 1  # threads


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a picture's time went, in seconds."""

    started: float  # by time.monotonic()
    decode: float
    queue: float
    inference: float

    @property
    def stages(self) -> dict[str, float]:
        """The seconds of each stage by its name, in their order."""
        return {"decode": self.decode, "queue": self.queue, "inference": self.inference}


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture's ranking, most probable first."""

    predictions: tuple[Prediction, ...]
    timing: Timing
    batch_rows: int  # rows, anybody's, in the largest of its last batches
    probabilities: Probabilities = field(repr=False, compare=False)  # of all classes
    cached: bool = False  # it was kept from before


@dataclass(frozen=True, slots=True)
class Explanation:
    """What each place of a picture's views adds to a label."""

    prediction: Prediction
    activations: tuple[Activation, ...]  # one a view


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks of each of its pictures."""

    views: str
    plans: Sequence[Plan]
    top_k: int
    bulk: bool


async def _never() -> None:
    await asyncio.Event().wait()


async def _leave_with(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
    raise CallerGone


@dataclass(frozen=True, slots=True)
class _Serving:
    backend: Backend
    batcher: Batcher[Payload, Result]
    cache: Cache | None


class Classifier:
    """Serves an ensemble while it is entered; loads it first, answering `NotReady` meanwhile."""

    def __init__(self, load: Callable[[], Backend], limits: Limits, report: Report) -> None:
        self._load = load
        self._limits = limits
        self._report = report
        self._serving: _Serving | None = None
        self._failure: Exception | None = None
        self._load_seconds = 0.0
        self._bulk_decoding = asyncio.Semaphore(limits.decoders)
        self._held = 0  # bulk pictures that wait for it
        self._life = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._loading = asyncio.create_task(self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loading
        await self._life.aclose()

    async def _start(self) -> None:
        started = time.monotonic()
        thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        loading = thread.submit(self._load)
        thread.shutdown(wait=False)
        try:
            backend = await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_close)
            raise
        except ServiceError as error:
            logger.error("the model could not be loaded: %s", error)  # noqa: TRY400 - says it all
            self._failure = error
            return
        except Exception as error:  # a model may fail to load in any way; the probes tell
            logger.exception("the model could not be loaded")
            self._failure = error
            return
        self._load_seconds = time.monotonic() - started
        # It may take its time, or hang: others are served meanwhile.
        self._life.push_async_callback(asyncio.to_thread, backend.close)
        ensemble = backend.ensemble
        batcher = Batcher(
            backend.lanes,
            ensemble.costs,
            max_bytes=self._limits.max_queue_bytes,
            report=self._report,
            bulk_share=self._limits.bulk_share,
        )
        kept = Cache(self._limits.cache_bytes) if self._limits.cache_bytes else None
        self._serving = _Serving(backend, await self._life.enter_async_context(batcher), kept)
        logger.info(
            "serving %s on %s in %s, ready after %.1f s",
            ensemble.name,
            ensemble.device,
            ensemble.precision,
            self._load_seconds,
        )
        if ensemble.notice:
            logger.warning("%s: %s", ensemble.name, ensemble.notice)

    async def ready(self) -> None:
        """Wait until the model is loaded; raises what made that fail."""
        await self._loading
        if self._failure:
            raise self._failure

    @property
    def ensemble(self) -> Ensemble:
        """What is served; raises `NotReady` while there is nothing."""
        return self._ready().backend.ensemble

    @property
    def backend(self) -> Backend:
        """Who does its work; raises `NotReady` while there is nobody."""
        return self._ready().backend

    @property
    def load_seconds(self) -> float:
        """How long it took to load what is served."""
        return self._load_seconds

    def backlog(self) -> Backlog:
        """Sum up what has been accepted and is not done."""
        if self._serving is None:
            return Backlog()
        backlog, backend = self._serving.batcher.backlog(), self._serving.backend
        return replace(
            backlog,
            seconds=backlog.seconds + backend.lead(0),
            stalled=max(backlog.stalled, backend.stalled),
        )

    @property
    def cached(self) -> int:
        """How many bytes of answers are kept."""
        return self._serving.cache.nbytes if self._serving and self._serving.cache else 0

    @property
    def loaded(self) -> str | None:
        """Why the model is not there yet, or nothing if it is."""
        if self._serving:
            return None
        if self._failure:
            return "the model could not be loaded; the log says why"
        return "the model is being loaded, warmed and timed"

    @property
    def worked(self) -> str | None:
        """Why the device's work is at a standstill, or nothing if it goes on."""
        if self._failure:
            return self.loaded
        return next(self._standstills(self._serving), None) if self._serving else None

    def _standstills(self, serving: _Serving) -> Iterator[str]:
        if not serving.backend.alive:
            yield "the process that classifies has ended"
        if not serving.batcher.alive:
            yield "the batcher's loop has ended"
        if serving.batcher.failures >= _FAILURES:
            yield f"the device failed on the last {serving.batcher.failures} batches"
        if self.backlog().stalled > self._limits.stall_seconds:
            yield f"the device has not answered for {self.backlog().stalled:.0f} s"

    def room(self, plan: str, decoding: int) -> int:
        """Say how many pictures at a time keep every lane, and so many decoders, at work."""
        backend = self._ready().backend
        demands = backend.ensemble.demands(backend.ensemble.plans(plan))
        largest = max(backend.ensemble.costs.largest(demand.key) for demand in demands)
        rows = sum(demand.rows for demand in demands)
        most = math.ceil(_AHEAD * len(backend.lanes) * largest / rows) + decoding
        nbytes = sum(demand.nbytes for demand in demands)
        return max(1, min(most, self._limits.max_queue_bytes // nbytes))

    def most_views(self, pictures: int, seconds: float, *, bulk: bool = False) -> PlanName:
        """Choose the most views for which there is ample time, by the present load.

        A part of the time and of the memory only, so that others still find room: as the load
        grows everybody gets fewer views, before anybody is refused.
        """
        backend, batcher = self._ready().backend, self._ready().batcher
        lead = self._lead(pictures, bulk=bulk)
        for name in _MOST_FIRST:
            demands = backend.ensemble.demands(backend.ensemble.plans(name)) * pictures
            done_in, filled = batcher.outlook(demands, lead=lead, bulk=bulk)
            if done_in <= _AMPLE * seconds and filled <= _AMPLE:
                return name
        return _FEWEST

    def check(self, *, plan: str, seconds: float, maps: bool = False, bulk: bool = False) -> None:
        """Raise at once what even a single picture would be refused with.

        If it is to be explained, both parts of the work are looked at.
        """
        serving = self._ready()
        ensemble = serving.backend.ensemble
        demands = ensemble.demands(plans := ensemble.plans(plan))
        if maps and ensemble.explains:
            demands += ensemble.demands(plans, maps=True)
        serving.batcher.check(demands, seconds, lead=self._lead(1, bulk=bulk), bulk=bulk)

    async def classify(  # noqa: PLR0913 - all that is asked
        self,
        pictures: Sequence[Picture],
        *,
        plan: str,
        top_k: int,
        seconds: float,
        bulk: bool = False,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> list[Answer | ServiceError]:
        """Rank each picture's labels, or say what is wrong with it, within `seconds`.

        Pictures of `bulk` let others pass, and have a share of the time while others wait.
        Raises, for all of them, `NotReady`, `Overloaded` or `DeadlineExceeded` if they are
        refused at once, and `CallerGone` when `gone()` returns first: whatever has not run by
        then costs nothing more.
        """
        serving = self._ready()
        wanted = _Wanted(plan, serving.backend.ensemble.plans(plan), top_k, bulk)
        if serving.cache is None:
            return await self._classify(pictures, wanted, seconds, gone)
        names = [await _named(picture, plan) for picture in pictures]
        known = {one: kept for one in names if (kept := serving.cache.find(one)) is not None}
        others = [picture for one, picture in zip(names, pictures, strict=True) if one not in known]
        found = iter(await self._classify(others, wanted, seconds, gone) if others else ())
        answers: list[Answer | ServiceError] = []
        for one in names:
            answer = self._kept(known[one], top_k) if one in known else next(found)
            if isinstance(answer, Answer) and not answer.cached:
                serving.cache.keep(one, answer.probabilities)
            answers.append(answer)
        return answers

    def _kept(self, probabilities: Probabilities, top_k: int) -> Answer:
        nothing = Timing(time.monotonic(), 0.0, 0.0, 0.0)
        ranking = self.ensemble.best(probabilities, top_k)
        return Answer(ranking, nothing, 0, probabilities, cached=True)

    async def _classify(
        self,
        pictures: Sequence[Picture],
        wanted: _Wanted,
        seconds: float,
        gone: Callable[[], Awaitable[None]],
    ) -> list[Answer | ServiceError]:
        serving = self._ready()
        deadline = time.monotonic() + seconds
        demands = [demand for one in pictures for demand in _demands(one, wanted.plans, serving)]
        lead = self._lead(len(pictures), bulk=wanted.bulk)
        with serving.batcher.reserve(demands, deadline, lead=lead, bulk=wanted.bulk) as seats:
            count = len(wanted.plans)
            mine = [seats[at : at + count] for at in range(0, len(seats), count)]
            return await _unless(
                gone,
                [
                    self._settle(
                        partial(self._answer, picture, wanted, own, deadline), own, deadline
                    )
                    for picture, own in zip(pictures, mine, strict=True)
                ],
            )

    async def explain(
        self,
        picture: bytes,
        *,
        plan: str,
        index: int | None,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> Explanation:
        """Tell what each place of a picture adds to a class, by default the most probable one.

        Raises what `classify` raises or gives, and `NotExplainable`.
        """
        deadline = time.monotonic() + seconds
        ensemble = self.ensemble
        if not ensemble.explains:
            raise NotExplainable(f"{ensemble.name} has no class activation maps; ask another model")
        self.check(plan=plan, seconds=seconds, maps=True)
        (answer,) = await self.classify(
            [picture], plan=plan, top_k=len(ensemble.labels), seconds=seconds, gone=gone
        )
        if isinstance(answer, ServiceError):
            raise answer
        told = {one.index: one for one in answer.predictions}
        prediction = answer.predictions[0] if index is None else told[index]
        serving = self._ready()
        demands = ensemble.demands(ensemble.plans(plan), maps=True)
        lead = serving.backend.lead(1)
        with serving.batcher.reserve(demands, deadline, lead=lead) as seats:
            work = partial(self._activations, picture, plan, prediction.index, seats, deadline)
            (found,) = await _unless(gone, [self._settle(work, seats, deadline)])
        if isinstance(found, ServiceError):
            raise found
        return Explanation(prediction, found)

    async def paint(
        self,
        picture: bytes,
        heat: Grid,
        *,
        seconds: float,
        gone: Callable[[], Awaitable[None]] = _never,
    ) -> bytes:
        """Draw a heat map over a picture: a PNG file; raises what `classify` raises or gives."""
        deadline = time.monotonic() + seconds
        work = partial(self._ready().backend.paint, picture, heat, self._bounds(deadline))
        (drawn,) = await _unless(gone, [self._settle(work, (), deadline)])
        if isinstance(drawn, ServiceError):
            raise drawn
        return drawn

    def _ready(self) -> _Serving:
        if self._serving is None:
            raise NotReady(str(self.loaded), retry_after=LOADING_RETRY)
        return self._serving

    async def _settle(
        self,
        work: Callable[[], Awaitable[T]],
        seats: Sequence[Seat[Payload, Result]],
        deadline: float,
    ) -> T | ServiceError:
        """Do a picture's work by its deadline; gives what is wrong, and its seats back."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await work()
        except TimeoutError:
            return DeadlineExceeded("the answer did not come before the deadline")
        except ServiceError as error:
            for seat in seats:
                self._ready().batcher.release(seat)
            return error

    async def _answer(
        self,
        picture: Picture,
        wanted: _Wanted,
        seats: Sequence[Seat[Payload, Result]],
        deadline: float,
    ) -> Answer:
        backend, batcher = self._ready().backend, self._ready().batcher
        started = time.monotonic()
        async with self._decoder(bulk=wanted.bulk):
            payloads = await backend.prepare(picture, wanted.views, self._bounds(deadline))
        decoded = time.monotonic() - started
        outcomes = await _together(batcher, seats, payloads)
        queued = min(outcome.queue_seconds for outcome in outcomes)
        done = max(outcome.queue_seconds + outcome.run_seconds for outcome in outcomes)
        parts = [cast("tuple[Probabilities, ...]", outcome.parts) for outcome in outcomes]
        average = mean(parts, wanted.plans)
        return Answer(
            backend.ensemble.best(average, wanted.top_k),
            Timing(started, decoded, queued, done - queued),
            max(outcome.batch_rows for outcome in outcomes),
            average,
        )

    async def _activations(
        self,
        picture: bytes,
        views: str,
        target: int,
        seats: Sequence[Seat[Payload, Result]],
        deadline: float,
    ) -> tuple[Activation, ...]:
        backend, batcher = self._ready().backend, self._ready().batcher
        payloads = await backend.prepare(picture, views, self._bounds(deadline), target)
        (outcome,) = await _together(batcher, seats, payloads)
        return tuple(cast("Activation", part) for part in outcome.parts)

    def _lead(self, pictures: int, *, bulk: bool) -> float:
        """Predict for how many seconds the last of so many pictures waits to be decoded.

        Bulk waits anew whenever as many have been decoded as there are threads.
        """
        backend, threads = self._ready().backend, self._limits.decoders
        if not bulk:
            return backend.lead(pictures)
        return math.ceil((self._held + pictures) / threads) * backend.lead(threads)

    @contextlib.asynccontextmanager
    async def _decoder(self, *, bulk: bool) -> AsyncIterator[None]:
        """Have no more pictures of bulk decoded at once than there are threads.

        The others wait here, where they are in nobody's way.
        """
        if not bulk:
            yield
            return
        self._held += 1
        try:
            await self._bulk_decoding.acquire()
        finally:
            self._held -= 1
        try:
            yield
        finally:
            self._bulk_decoding.release()

    def _bounds(self, deadline: float) -> Bounds:
        """Bound decoding by the deadline, too: a thread cannot be stopped from here."""
        most = min(self._limits.picture.seconds, deadline - time.monotonic())
        return replace(self._limits.picture, seconds=most)


async def _unless(
    gone: Callable[[], Awaitable[None]], works: Sequence[Coroutine[Any, Any, T]]
) -> list[T]:
    """Do all works at once; raises `CallerGone`, and ends them, when `gone()` returns first."""
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_leave_with(gone))
            doing = [tasks.create_task(work) for work in works]
            await asyncio.wait(doing)
            watching.cancel()
    except* CallerGone:
        raise CallerGone("the caller hung up before the answer was there") from None
    return [one.result() for one in doing]


async def _named(picture: Picture, plan: str) -> bytes:
    """Name a picture's answer; a large one in a thread, for it would keep the loop."""
    if len(picture) > _LONG or not isinstance(picture, bytes):
        return await asyncio.to_thread(cache.name, picture, plan)
    return cache.name(picture, plan)


def _demands(picture: Picture, plans: Sequence[Plan], serving: _Serving) -> list[Demand]:
    itemsize = picture.itemsize if is_view(picture) else 1  # else it becomes uint8 pixels
    return serving.backend.ensemble.demands(plans, itemsize=itemsize)


def _close(loading: Future[Backend]) -> None:
    """Close what was loaded after everybody had left."""
    if not loading.cancelled() and not loading.exception():
        loading.result().close()


async def _together(
    batcher: Batcher[Payload, Result],
    seats: Sequence[Seat[Payload, Result]],
    payloads: Sequence[Payload],
) -> list[Outcome[Result]]:
    """Submit a picture's jobs, one a member; the first error ends them all."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(batcher.submit(seat, payload))
                for seat, payload in zip(seats, payloads, strict=True)
            ]
    except* ServiceError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]
