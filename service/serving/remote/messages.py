"""What crosses between the core process and API processes, beside requests and errors."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import ServiceError
from service.serving.predictor import PredictResponse
from service.serving.status import Status
from service.serving.types import Answer
from service.settings import PlanName

TICK = 0.25  # seconds between two signs of life of the core


@dataclass(frozen=True, slots=True)
class Predicted:
    """A `PredictResponse` with the key of its ensemble, which the API process knows already."""

    ensemble: str
    plan: PlanName
    answers: Sequence[Answer | ServiceError]

    @classmethod
    def of(cls, response: PredictResponse) -> "Predicted":
        """Take the key in the ensemble's place."""
        return cls(response.ensemble.key, response.plan, response.answers)

    def response(self, *statuses: Status) -> PredictResponse | None:
        """Find the ensemble in one of these statuses."""
        for status in statuses:
            for model in status.served.values():
                if model.ensemble.key == self.ensemble:
                    return PredictResponse(model.ensemble, self.plan, self.answers)
        return None


async def receive_connection(control: socket.socket) -> socket.socket | None:
    """Wait for a connection that the supervisor passes; None once the supervisor has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(control, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(control)
    files: list[int] = []
    with contextlib.suppress(OSError):
        _, files, _, _ = socket.recv_fds(control, 1, 1)
    return socket.socket(fileno=files[0]) if files else None
