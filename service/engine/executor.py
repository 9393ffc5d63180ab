"""What runs batches: an executor of a device, blocking, and what it needs to know of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Result
from service.models.manifest import Label, Manifest
from service.scheduling.cost_model import CostModel
from service.scheduling.types import Batch


class Model(Protocol):
    """A model read from the store, in whatever form."""

    @property
    def name(self) -> str:
        """Its name in the store."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        ...

    @property
    def labels(self) -> tuple[Label, ...]:
        """Its classes."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weights."""
        ...

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of the views that its network takes."""
        ...

    @property
    def explains(self) -> bool:
        """Has its network class activation maps."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceExecutor:
    """A way to run batches on a device, for one caller at a time.

    See `service.scheduling.types.Executor` and `service.models.ensemble.Result`. Raises
    `OutOfMemory`.
    """

    run: Callable[[Batch[PreparedImage]], Sequence[Result]]
    device: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """Models on their devices, ready to run batches."""

    models: Sequence[Model]
    executors: tuple[DeviceExecutor, ...]
    costs: CostModel
    device: str
    precision: str
    warmup_seconds: float  # to warm up and time batches
