"""The I/O steps that a call yields to the client that runs it, and the results of each.

A call is a generator: it yields a step, is sent the step's result, and returns the call's result.
So its logic is shared by the blocking client and the asyncio one.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.client.errors import ClientError
from service.client.image_input import ImageInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; several images are sent as a multipart form."""

    method: str
    path: str
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    proxy: str | None = None  # that it came through


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; its result is a `Response`, or a `ClientError` if there is none."""

    request: Request
    seconds: float  # until the call's deadline


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep; its result is None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read an image; its result is the bytes, or the `ClientError` of the failed read."""

    image: ImageInput


Steps = Generator[Send | Sleep | Read, Any, T]


@dataclass(frozen=True, slots=True)
class CallContext:
    """A call's deadline and clock in seconds, its source of jitter, and its retry callback."""

    deadline: float
    now: Callable[[], float]
    jitter: Callable[[], float]  # from 0 to 1
    on_retry: Callable[[ClientError, float], None]  # an error, and the seconds until the retry

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.now()
