"""The API process's end: the core in another process, behind the interface of `Core`."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from prometheus_client.metrics_core import Metric

from service.errors import DeadlineExceeded, InferenceFailed, NotReady
from service.models.ensemble import Ensemble
from service.serving.core import LoadRequest
from service.serving.disconnects import never, run_until_gone
from service.serving.metrics.metrics import Metrics
from service.serving.predictor import (
    AdmitRequest,
    ExplainRequest,
    PaintRequest,
    Predictor,
    PredictRequest,
    PredictResponse,
)
from service.serving.rate_limits import Limit, Usage
from service.serving.remote.messages import Predicted, receive_connection
from service.serving.remote.peer import Notices, Peer
from service.serving.served_model import LOADING
from service.serving.status import Status
from service.serving.types import Explanation
from service.settings import PlanName

RESTARTING = "the core process has ended and is being restarted"
_REPLACED = "the model was replaced more than once meanwhile"
_FIRST_STATUS = 2.0  # seconds to wait for it before requests are accepted
_LATE = 1.0  # seconds after a deadline, which is the core's to keep
_AMPLE = 0.5  # of a request's time; with less backlog than that it is admitted unasked


_Timed = PredictRequest | ExplainRequest | PaintRequest


class RemoteCore:
    """The core in another process, while it is entered.

    The supervisor passes the connection to it over `control`, and another one after each restart.
    `abandoned` is called when the supervisor has ended.
    """

    def __init__(
        self,
        control: socket.socket,
        names: Sequence[str],
        stall_seconds: float,
        abandoned: Callable[[], None],
    ) -> None:
        self.metrics = Metrics()
        self._control, self._stall_seconds, self._abandoned = control, stall_seconds, abandoned
        missing = dict.fromkeys(names, LOADING)
        self._status = Status(names[0], {}, missing, LOADING, None, {}, None)
        self._backlog, self._lived = 0.0, time.monotonic()
        self._peer = self._unconnected()
        self._told = asyncio.Event()  # set by the first status

    async def __aenter__(self) -> Self:
        self._connecting = asyncio.create_task(self._connect())
        with suppress(TimeoutError):  # it answers that it is not ready, if the core is restarted
            await asyncio.wait_for(self._told.wait(), _FIRST_STATUS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._peer.notify("counted", await self._collect_own())
        self._connecting.cancel()
        await asyncio.gather(self._connecting, return_exceptions=True)

    @property
    def status(self) -> Status:
        """The models as the core last said."""
        silent = time.monotonic() - self._lived
        if silent <= self._stall_seconds or self._status.not_loaded_reason:
            return self._status
        return replace(self._status, failure_reason=f"the core is silent for {silent:.0f} s")

    @contextmanager
    def use(self, name: str | None = None) -> Iterator[Predictor]:
        """Use a model; raises `UnknownModel` or `NotReady`."""
        status = self.status
        yield RemotePredictor(self, name, status.find(name).ensemble, status)

    async def admit(self, name: str | None, request: AdmitRequest) -> None:
        """Raise what a request would be refused with now, if its time may be too short."""
        self.status.find(name)
        if not self.status.is_ready or self._backlog >= _AMPLE * request.seconds:
            await self.ask("admit", name, request)

    async def take(self, key: str, limits: tuple[Limit, ...]) -> Usage:
        """Count a request of an API key, unless a limit is reached."""
        usage: Usage = await self.ask("take", key, limits)
        return usage

    async def load(self, request: LoadRequest) -> None:
        """Serve a model; see `LocalCore.load`."""
        await self.ask("load", request)

    async def unload(self, name: str) -> None:
        """Unload a model; see `LocalCore.unload`."""
        await self.ask("unload", name)

    async def collect(self) -> Sequence[Metric]:
        """Collect the metrics of all processes."""
        families: Sequence[Metric] = await self.ask("collect")
        return families

    async def ask(self, method: str, *arguments: object) -> Any:
        """Call the core; raises `NotReady` without its process, `Interrupted` if that ends."""
        if not self._peer.is_connected:
            raise NotReady(self._status.not_loaded_reason or LOADING)
        return await self._peer.call(method, *arguments)

    async def _connect(self) -> None:
        while connection := await receive_connection(self._control):
            self._peer = self._unconnected()
            async with self._peer.connected(connection) as running:
                await running
            missing = dict.fromkeys(self._status.served, RESTARTING) | {**self._status.missing}
            self._status = replace(
                self._status, served={}, missing=missing, not_loaded_reason=RESTARTING
            )
        self._abandoned()

    def _unconnected(self) -> Peer:
        notices: Notices = {"changed": self._changed, "lives": self._lives}
        return Peer({"collect": self._collect_own}, notices, RESTARTING)

    def _changed(self, status: Status) -> None:
        self._status, self._lived = status, time.monotonic()
        self._told.set()

    def _lives(self, backlog: float) -> None:
        self._backlog, self._lived = backlog, time.monotonic()

    async def _collect_own(self) -> Sequence[Metric]:
        return [*self.metrics.registry.collect()]


@dataclass(frozen=True, slots=True)
class RemotePredictor:
    """Classifies with a model of the core's process."""

    core: RemoteCore
    name: str | None
    ensemble: Ensemble
    since: Status

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Classify all images of a request; see `Predictor.predict`."""
        predicted: Predicted = await self._ask("predict", request)
        if response := predicted.response(self.core.status, self.since):
            return response
        raise InferenceFailed(_REPLACED)

    async def admit(self, request: AdmitRequest) -> PlanName:
        """Choose the views of images that will be predicted one by one; see `Predictor.admit`."""
        plan: PlanName = await self.core.ask("admit", self.name, request)
        return plan

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Compute an image's class activation maps; see `Predictor.explain`."""
        answer: Explanation = await self._ask("explain", request)
        return answer

    async def paint(self, request: PaintRequest) -> bytes:
        """Draw a heat map over an image; see `Predictor.paint`."""
        answer: bytes = await self._ask("paint", request)
        return answer

    async def _ask(self, method: str, request: _Timed) -> Any:
        crossing = replace(request, gone=never)  # the client is this process's
        try:
            async with asyncio.timeout(request.seconds + _LATE):
                works = [self.core.ask(method, self.name, crossing)]
                (answer,) = await run_until_gone(request.gone, works)
        except TimeoutError:
            raise DeadlineExceeded("the core process did not answer before the deadline") from None
        return answer
