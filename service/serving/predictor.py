"""The predictor: a request's images to their answers, under every protocol.

It chooses the views where a request leaves them open, classifies, offers the default model's
requests to the shadow candidate, and counts each image.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.errors import MalformedRequest, ServiceError
from service.imaging.activation_map import Grid
from service.imaging.image_decoder import ImageInput
from service.models.ensemble import Ensemble
from service.serving import request_stats
from service.serving.classifier import Classifier
from service.serving.disconnects import never
from service.serving.metrics.metrics import Metrics
from service.serving.shadow import ShadowCandidate
from service.serving.types import Answer, Explanation
from service.settings import AUTO, PlanName, Views

EMPTY = "an image is empty; send its bytes"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Images, and how to classify them; an error stands for an image that could not be read."""

    images: Sequence[ImageInput | ServiceError]
    views: Views
    top_k: int
    seconds: float  # left until its deadline
    background: bool = False
    features: bool = False  # whether answers have them, too; of fixed views
    gone: Callable[[], Awaitable[None]] = never  # returns when the client has disconnected


@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """What decides whether images are admitted: one request's, or ones predicted one by one."""

    views: Views
    seconds: float  # left until their deadline
    images: int = 1
    maps: bool = False  # whether they are to be explained, too
    background: bool = False


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """An image, and which of its labels to explain."""

    image: bytes
    plan: str
    index: int | None  # of the label; None is the most probable one
    seconds: float  # left until its deadline
    gone: Callable[[], Awaitable[None]] = never  # returns when the client has disconnected


@dataclass(frozen=True, slots=True)
class PaintRequest:
    """An image, and the heat map to draw over it."""

    image: bytes
    heat: Grid
    seconds: float  # left until its deadline
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


class Predictor(Protocol):
    """Classifies with a model that is in use."""

    @property
    def ensemble(self) -> Ensemble:
        """The model's metadata."""

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Classify all images of a request.

        Raises `NoFeatures`, `Overloaded`, `DeadlineExceeded` or `ClientDisconnected` for all of
        them.
        """

    async def admit(self, request: AdmitRequest) -> PlanName:
        """Choose the views of images that will be predicted one by one.

        Raises what `predict` would raise for all of them together now.
        """

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Compute an image's class activation maps; raises what `Classifier.explain` does."""

    async def paint(self, request: PaintRequest) -> bytes:
        """Draw a heat map over an image: a PNG file; raises what `Classifier.paint` does."""


@dataclass(frozen=True, slots=True)
class LocalPredictor:
    """Classifies with a classifier of this process (`ModelRegistry.use`)."""

    classifier: Classifier
    shadow: ShadowCandidate | None  # that is offered what was classified
    metrics: Metrics

    @property
    def ensemble(self) -> Ensemble:
        """The model's metadata."""
        return self.classifier.ensemble

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Classify all images of a request; count them, and offer them to the shadow candidate."""
        plan = self._plan(
            request.views, len(request.images), request.seconds, background=request.background
        )
        errors = [*map(_error, request.images)]
        images = [
            image for image in request.images if not isinstance(image, ServiceError) and len(image)
        ]
        classified = await self._classify(plan, request, images)
        if self.shadow:
            self.shadow.offer(images, plan, classified)
        rest = iter(classified)
        answers = [error or next(rest) for error in errors]
        request_stats.count(
            self.metrics, self.ensemble, plan, answers, background=request.background
        )
        return PredictResponse(self.ensemble, plan, answers)

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Compute an image's class activation maps; raises what `Classifier.explain` does."""
        return await self.classifier.explain(
            request.image,
            plan=request.plan,
            index=request.index,
            seconds=request.seconds,
            gone=request.gone,
        )

    async def paint(self, request: PaintRequest) -> bytes:
        """Draw a heat map over an image: a PNG file; raises what `Classifier.paint` does."""
        return await self.classifier.paint(
            request.image, request.heat, seconds=request.seconds, gone=request.gone
        )

    async def admit(self, request: AdmitRequest) -> PlanName:
        """Choose the views of images that will be predicted one by one."""
        plan = self._plan(
            request.views, request.images, request.seconds, background=request.background
        )
        self.classifier.admit(
            plan=plan,
            images=request.images,
            seconds=request.seconds,
            maps=request.maps,
            background=request.background,
        )
        return plan

    def _plan(self, views: Views, images: int, seconds: float, *, background: bool) -> PlanName:
        if views != AUTO:
            return views
        return self.classifier.choose_views(images, seconds, background=background)

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
            features=request.features,
            gone=request.gone,
        )


def _error(image: ImageInput | ServiceError) -> ServiceError | None:
    """Return the error of an image that is not classified."""
    if isinstance(image, ServiceError):
        return image
    return None if len(image) else MalformedRequest(EMPTY)
