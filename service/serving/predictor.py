"""The predictor: a request's images to their answers, under every protocol.

It chooses the views where a request leaves them open, classifies, offers the default model's
requests to the shadow candidate, and counts each image.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import compress

from service.errors import MalformedRequest, ServiceError
from service.imaging.image_decoder import ImageInput
from service.models.ensemble import Ensemble
from service.serving import request_stats
from service.serving.classifier import Classifier
from service.serving.disconnects import never
from service.serving.metrics.metrics import Metrics
from service.serving.shadow import ShadowCandidate
from service.serving.types import Answer
from service.settings import AUTO, PlanName, Views

EMPTY = "an image is empty; send its bytes"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Images, and how to classify them."""

    images: Sequence[ImageInput]
    views: Views
    top_k: int
    seconds: float  # left until its deadline
    background: bool = False
    gone: Callable[[], Awaitable[None]] = never  # returns when the client has disconnected


@dataclass(frozen=True, slots=True)
class PredictResponse:
    """The answer or the error of each image, in their order."""

    ensemble: Ensemble
    plan: PlanName
    answers: Sequence[Answer | ServiceError]

    @property
    def errors(self) -> list[ServiceError]:
        """The errors of images."""
        return [answer for answer in self.answers if isinstance(answer, ServiceError)]


@dataclass(frozen=True, slots=True)
class Predictor:
    """Classifies with a model that is in use (`ModelRegistry.use`)."""

    classifier: Classifier
    shadow: ShadowCandidate | None  # that is offered what was classified
    metrics: Metrics

    @property
    def ensemble(self) -> Ensemble:
        """The model's metadata."""
        return self.classifier.ensemble

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Classify all images of a request.

        Raises `Overloaded`, `DeadlineExceeded` or `ClientDisconnected` for all of them.
        """
        plan = self._plan(request)
        sent = [len(image) > 0 for image in request.images]
        images = [*compress(request.images, sent)]
        classified = await self._classify(plan, request, images)
        if self.shadow:
            self.shadow.offer(images, plan, classified)
        rest = iter(classified)
        answers = [next(rest) if is_sent else MalformedRequest(EMPTY) for is_sent in sent]
        request_stats.count(
            self.metrics, self.ensemble, plan, answers, background=request.background
        )
        return PredictResponse(self.ensemble, plan, answers)

    def _plan(self, request: PredictRequest) -> PlanName:
        if request.views != AUTO:
            return request.views
        count, background = len(request.images), request.background
        return self.classifier.choose_views(count, request.seconds, background=background)

    async def _classify(
        self, plan: PlanName, request: PredictRequest, images: Sequence[ImageInput]
    ) -> Sequence[Answer | ServiceError]:
        if not images:
            return []
        return await self.classifier.classify(
            images,
            plan=plan,
            top_k=request.top_k,
            seconds=request.seconds,
            background=request.background,
            gone=request.gone,
        )
