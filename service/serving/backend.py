"""The interface of what decodes an ensemble's images and computes its batches."""

from collections.abc import Sequence
from typing import Any, Protocol

from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Ensemble, Result
from service.scheduling.types import Executor

Payload = Any
"""What an image brings for one member; known to the backend only."""


class Backend(Protocol):
    """Who does an ensemble's work: decodes its images and computes its batches."""

    @property
    def ensemble(self) -> Ensemble:
        """Whose work it is."""
        ...

    @property
    def executors(self) -> Sequence[Executor[Payload, Result]]:
        """Who computes; each gives the sum of a slice's rows, or the map of the only one."""
        ...

    @property
    def pid(self) -> int:
        """The number of the process that it is in."""
        ...

    async def ended(self) -> None:
        """Wait until it can not go on."""
        ...

    @property
    def stalled(self) -> float:
        """For how many seconds it has left somebody without an answer."""
        ...

    async def prepare(
        self, image: ImageInput, views: str, bounds: Bounds, target: int = 0
    ) -> Sequence[Payload]:
        """Decode an image for the views so named; gives a payload for each member.

        Where maps are wanted they are of the class `target`. Raises what
        `service.imaging.image_decoder.decode` does, or `InferenceFailed`.
        """
        ...

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Draw a heat map over an image, as `service.imaging.heatmap` does; raises the same."""
        ...

    def decode_wait(self, images: int) -> float:
        """Predict for how many seconds the last of so many more images would wait for that."""
        ...

    def close(self) -> None:
        """Stop; nobody calls it any more."""
        ...
