"""The messages between the process that serves and the worker."""

import struct
from dataclasses import dataclass

from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Ensemble
from service.scheduling.types import Batch

LENGTH = struct.Struct("!I")  # of what follows it on a connection


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the worker says when it is ready; `executors` are the devices of its executors."""

    ensemble: Ensemble
    executors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Asks to decode an image; answered by a number for what came of it."""

    image: ImageInput
    views: str
    bounds: Bounds
    target: int = 0  # the class that maps are of


@dataclass(frozen=True, slots=True)
class Paint:
    """Asks to draw a heat map over an image; answered by a PNG file."""

    image: bytes
    heat: Grid
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Run:
    """Asks a lane to run a batch, whose payloads are such numbers."""

    executor: int
    batch: Batch[int]


Request = Prepare | Paint | Run


@dataclass(frozen=True, slots=True)
class Call:
    """What goes over a connection: a wish, and the numbers that nobody holds any more."""

    wish: Request
    forget: tuple[int, ...]
