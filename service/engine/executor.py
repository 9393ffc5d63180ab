"""The interface of executors, which run batches on a device, and of their models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Result
from service.models.manifest import Label, Manifest
from service.scheduling.cost_model import CostModel
from service.scheduling.types import Batch


class Model(Protocol):
    """A model read from the store."""

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
        """Its labels, one per class."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of its weights."""
        ...

    @property
    def sides(self) -> tuple[int, ...]:
        """Supported view sizes in pixels."""
        ...

    @property
    def explains(self) -> bool:
        """Whether it has class activation maps."""
        ...

    @property
    def channels(self) -> int:
        """The number of its features; 0 without class activation maps."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceExecutor:
    """Runs batches on a device: blocking, one batch at a time.

    See `service.scheduling.types.Executor` and `service.models.ensemble.Result`. `run` raises
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
    warmup_seconds: float  # of warming up and measuring
