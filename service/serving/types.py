"""The classifier's inputs and outputs: limits, answers, timings."""

from dataclasses import dataclass, field

from service.imaging.activation_map import Activation
from service.imaging.image_decoder import Bounds
from service.models.ensemble import Features, Prediction, Probabilities
from service.settings import BACKGROUND_SHARE


@dataclass(frozen=True, slots=True)
class Limits:
    """The classifier's limits; see `service.settings` for each."""

    image: Bounds
    max_queue_bytes: int
    stall_seconds: float
    cache_bytes: int = 0
    background_share: float = BACKGROUND_SHARE
    decoders: int = 1  # threads


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of an image's stages."""

    started: float  # by time.monotonic()
    decode: float
    queue: float
    inference: float

    @property
    def stages(self) -> dict[str, float]:
        """The seconds of each stage by name, in the order of the stages."""
        return {"decode": self.decode, "queue": self.queue, "inference": self.inference}


@dataclass(frozen=True, slots=True)
class Answer:
    """An image's ranking, most probable first."""

    predictions: tuple[Prediction, ...]
    timing: Timing
    batch_rows: int  # rows of all jobs in the largest of its last batches
    probabilities: Probabilities = field(repr=False, compare=False)  # of all classes
    view_count: int  # that were looked at
    features: Features | None = field(default=None, repr=False, compare=False)  # if asked for
    cached: bool = False  # from the result cache


@dataclass(frozen=True, slots=True)
class Explanation:
    """A label's class activation maps over an image's views."""

    prediction: Prediction
    activations: tuple[Activation, ...]  # one a view
