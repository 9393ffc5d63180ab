"""The Open Inference Protocol's data plane, for HTTP and gRPC: a request in, a response out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from service.api.open_inference import infer_request
from service.api.open_inference.infer_request import InferRequest, ValidOutput, ValidRequest
from service.api.open_inference.infer_response import (
    InferResponse,
    OutputTensor,
    classification,
)
from service.api.open_inference.tensors import FEATURES
from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.models.ensemble import Ensemble
from service.serving.core import Core
from service.serving.disconnects import never
from service.serving.metrics.metrics import Metrics
from service.serving.predictor import PredictRequest
from service.serving.status import Status
from service.serving.types import Answer
from service.settings import Settings

T = TypeVar("T")

EXTENSIONS = ("binary_tensor_data", "classification")  # Triton's
PLATFORM = "pytorch_safetensors"
LARGE = 256 * 1024  # bytes of a body that is parsed in a thread, beside the event loop
_IMAGE_ERRORS = (TooLarge, UnreadableImage, UnsupportedType)


@dataclass(frozen=True, slots=True)
class Inferred:
    """A response, with the answer of each image."""

    response: InferResponse
    plan: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A served model, as Triton's repository index lists it."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inference:
    """Handles requests with the models of the core, as /classify does."""

    core: Core
    settings: Settings
    parser: ThreadPoolExecutor = field(  # one thread: several would compete with the event loop
        default_factory=lambda: ThreadPoolExecutor(1, "parse")
    )

    @property
    def status(self) -> Status:
        """The models as they are now."""
        return self.core.status

    @property
    def metrics(self) -> Metrics:
        """The service's metrics."""
        return self.core.metrics

    async def parse(self, nbytes: int, work: Callable[[], T]) -> T:
        """Run `work`, which parses so many bytes: at once, or in a thread if they are many."""
        if nbytes <= LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.parser, work)

    async def validate(self, nbytes: int, read: Callable[[], InferRequest]) -> ValidRequest:
        """Validate the request that `read` parses from so many bytes; raises what both raise."""
        max_images = self.settings.max_images_per_request
        return await self.parse(nbytes, lambda: infer_request.validate(read(), max_images))

    def ensemble(self, name: str, version: str) -> Ensemble:
        """Give a model's description; an empty version is any. Raises what `find` does."""
        return self.status.find(named(name, version)).ensemble

    def works(self, name: str, version: str) -> bool:
        """Tell whether a model is ready; raises what `find` does."""
        return self.status.find(named(name, version)).failure_reason is None

    def index(self, *, only_ready: bool) -> list[Indexed]:
        """List the served models and their states."""
        models = [
            Indexed(
                name,
                served.ensemble.version,
                "UNAVAILABLE" if served.failure_reason else "READY",
                served.failure_reason or "",
            )
            for name, served in self.status.served.items()
        ]
        return [model for model in models if model.state == "READY" or not only_ready]

    async def infer(  # noqa: PLR0913 - the request, and the protocol's deadline and priority
        self,
        name: str,
        version: str,
        request: ValidRequest,
        *,
        seconds: float | None,
        background: bool = False,
        gone: Callable[[], Awaitable[None]] = never,
    ) -> Inferred:
        """Classify all images of a request; raises the error of the first that fails.

        `seconds` are left until the client's deadline, if it has one.
        """
        timeout = self.settings.timeout_seconds
        predict_request = PredictRequest(
            request.images,
            request.views or self.settings.views,
            request.labels or 1,
            timeout if seconds is None else min(timeout, seconds),
            background=background,
            features=request.features,
            gone=gone,
        )
        with self.core.use(named(name, version)) as model:
            predicted = await model.predict(predict_request)
        ensemble, plan, good = predicted.ensemble, predicted.plan, all_or_error(predicted.answers)
        outputs = [_output(wanted, good) for wanted in request.outputs]
        parameters = {"views": plan, **({"notice": ensemble.notice} if ensemble.notice else {})}
        response = InferResponse(request.id, name, ensemble.version, parameters, outputs)
        return Inferred(response, plan, good)


def named(name: str, version: str) -> str:
    """Give the name of a model's version in the registry."""
    return f"{name}@{version}" if version and not name.endswith(f"@{version}") else name


def all_or_error(answers: Sequence[Answer | ServiceError]) -> list[Answer]:
    """Give the answers, or raise the first error, where one response is for all rows."""
    good: list[Answer] = []
    for row, answer in enumerate(answers):
        if isinstance(answer, _IMAGE_ERRORS) and len(answers) > 1:
            raise type(answer)(f"row {row}: {answer}") from answer
        if isinstance(answer, ServiceError):
            raise answer
        good.append(answer)
    return good


def _output(wanted: ValidOutput, answers: Sequence[Answer]) -> OutputTensor:
    values = _rankings(answers) if wanted.labels else _numbers(wanted.name, answers)
    return OutputTensor(wanted.name, values, wanted.is_binary)


def _numbers(name: str, answers: Sequence[Answer]) -> npt.NDArray[np.float32]:
    rows = [answer.features if name == FEATURES else answer.probabilities for answer in answers]
    return np.array(rows, np.float32)


def _rankings(answers: Sequence[Answer]) -> list[list[str]]:
    return [
        [classification(top.label, top.index, top.probability) for top in answer.predictions]
        for answer in answers
    ]
