"""The backend interface: decodes an ensemble's images and computes its batches."""

from collections.abc import Sequence
from typing import Any, Protocol

from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Ensemble, Result
from service.scheduling.types import Executor

Payload = Any
"""An image's input for one member of the ensemble; opaque outside the backend."""


class Backend(Protocol):
    """Decodes an ensemble's images and computes its batches, mostly in a worker process."""

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble it computes."""
        ...

    @property
    def executors(self) -> Sequence[Executor[Payload, Result]]:
        """The executors; each returns a result for a slice, see `Result`."""
        ...

    @property
    def pid(self) -> int:
        """The ID of its process."""
        ...

    async def ended(self) -> None:
        """Wait until its process ends or fails for good."""
        ...

    @property
    def stalled(self) -> float:
        """For how many seconds its oldest request has had no response."""
        ...

    async def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> Sequence[Payload]:
        """Decode an image for a view plan; return a payload for each member.

        Class activation maps are of the class `target`; with `features`, its results have those,
        too. Raises what `service.imaging.image_decoder.decode` does, or `InferenceFailed`.
        """
        ...

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Draw a heat map over an image, as `service.imaging.heatmap` does; raises the same."""
        ...

    def decode_wait(self, images: int) -> float:
        """Predict for how many seconds the last of so many more images waits to be decoded."""
        ...

    def close(self) -> None:
        """Stop; it is not used afterwards."""
        ...
