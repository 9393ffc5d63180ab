"""The messages between the serving process and the worker process.

Those of every image, and what is in them, have no slots: Python code pickles slots, field by field.
"""

import pickle
import struct
import traceback
from dataclasses import dataclass

from service.imaging.activation_map import Grid
from service.imaging.image_decoder import Bounds, ImageInput
from service.models.ensemble import Ensemble
from service.scheduling.types import Batch

LENGTH = struct.Struct("!I")  # bytes of the pickled message that follows


def framed(message: object) -> bytes:
    """Encode a call or a response: its length, then the pickle."""
    content = pickle.dumps(message)
    return LENGTH.pack(len(content)) + content


def reported(error: Exception) -> RuntimeError:
    """Describe an unexpected error, in `except`, for another process: pickling loses tracebacks."""
    described = RuntimeError(f"{type(error).__name__}: {error}")
    described.add_note(traceback.format_exc())
    return described


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker is ready; `executors` has the device of each of its executors."""

    ensemble: Ensemble
    executors: tuple[int, ...]


@dataclass(frozen=True)
class Prepare:
    """Request to decode an image; the response is its number and how many members it has."""

    image: ImageInput
    views: str
    bounds: Bounds
    target: int = 0  # class of the activation maps
    features: bool = False  # whether its features are asked for, too


@dataclass(frozen=True, slots=True)
class Paint:
    """Request to draw a heat map over an image; the response is a PNG file."""

    image: bytes
    heat: Grid
    bounds: Bounds


@dataclass(frozen=True)
class Run:
    """Request to run a batch on an executor; its payloads are numbers of prepared images."""

    executor: int
    batch: Batch[int]


Request = Prepare | Paint | Run


@dataclass(frozen=True)
class Call:
    """A request, and the numbers of prepared images that the worker may free."""

    request: Request
    forget: tuple[int, ...]
