"""The core's end: serves the core of this process to API processes."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from prometheus_client.metrics_core import Metric

from service.errors import ServiceError
from service.serving.core import LoadRequest, LocalCore
from service.serving.metrics import merge
from service.serving.predictor import AdmitRequest, ExplainRequest, PaintRequest, PredictRequest
from service.serving.remote.messages import TICK, Predicted, receive_connection
from service.serving.remote.peer import Handlers, Peer
from service.serving.status import Status
from service.serving.types import Explanation
from service.settings import PlanName

_ENDED = "the API process has ended"
_COLLECT_SECONDS = 1.0  # for an API process to give its metrics; after it, its last ones count

Families = Sequence[Metric]


class CoreServer:
    """Serves a core that is entered to API processes, each over a connection of its own."""

    def __init__(self, core: LocalCore) -> None:
        self._core = core
        self._peers: dict[Peer, Families] = {}  # with the last metrics of each
        self._ended: Families = ()  # what counts of API processes that have ended
        self._sent: Status | None = None

    async def accept(self, control: socket.socket) -> None:
        """Serve the API processes that the supervisor connects, until it closes `control`."""
        async with asyncio.TaskGroup() as tasks:
            while connection := await receive_connection(control):
                tasks.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        """Serve an API process until its connection ends; what it has asked for is cancelled."""
        peer = Peer(self._handlers(), {"counted": lambda *all_: self._counted(peer, *all_)}, _ENDED)
        async with peer.connected(connection) as running:
            self._peers[peer] = ()
            peer.notify("changed", self._core.status)
            try:
                await running
            finally:
                last = merge.kept(self._peers.pop(peer))
                self._ended = merge.merged([self._ended, last])

    async def publish(self) -> None:
        """Tell all API processes what changes, and that this one lives, until cancelled."""
        while True:
            self._publish()
            for peer in self._peers:
                peer.notify("lives", self._core.models.backlog().seconds)
            await asyncio.sleep(TICK)

    def _publish(self) -> None:
        """Send the status if it has changed."""
        if (status := self._core.status) != self._sent:
            self._sent = status
            for peer in self._peers:
                peer.notify("changed", status)

    def _counted(self, peer: Peer, families: Families) -> None:
        self._peers[peer] = families

    def _handlers(self) -> Handlers:
        return {
            "admit": self._admit,
            "take": self._core.take,
            "predict": self._predict,
            "explain": self._explain,
            "paint": self._paint,
            "load": self._load,
            "unload": self._unload,
            "collect": self._collect,
        }

    async def _predict(self, name: str | None, request: PredictRequest) -> Predicted:
        with self._core.use(name) as model:
            response = Predicted.of(await model.predict(request))
        if not (self._sent and response.response(self._sent)):
            self._publish()  # its model has been loaded since the last time
        return response

    async def _admit(self, name: str | None, request: AdmitRequest) -> PlanName:
        with self._core.use(name) as model:
            return await model.admit(request)

    async def _explain(self, name: str | None, request: ExplainRequest) -> Explanation:
        with self._core.use(name) as model:
            return await model.explain(request)

    async def _paint(self, name: str | None, request: PaintRequest) -> bytes:
        with self._core.use(name) as model:
            return await model.paint(request)

    async def _load(self, request: LoadRequest) -> None:
        await self._core.load(request)
        self._publish()

    async def _unload(self, name: str) -> None:
        await self._core.unload(name)
        self._publish()

    async def _collect(self) -> list[Metric]:
        """Collect the metrics of this process and of all API processes, also of ended ones."""
        await asyncio.gather(*map(self._ask, [*self._peers]))
        return merge.merged([await self._core.collect(), self._ended, *self._peers.values()])

    async def _ask(self, peer: Peer) -> None:
        try:
            async with asyncio.timeout(_COLLECT_SECONDS):
                families: Any = await peer.call("collect")
        except (TimeoutError, ServiceError):
            return
        if peer in self._peers:
            self._peers[peer] = families
