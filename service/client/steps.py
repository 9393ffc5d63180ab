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
    """An HTTP request; several images are sent as a multipart form, without any there is JSON."""

    method: str
    path: str
    query: Mapping[str, str | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[bytes] = ()
    json: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    proxy: str | None = None  # that it came through
    lines: Any = None  # of one that is streamed: an iterator of the client that runs the call


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; its result is a `Response`, or a `ClientError` if there is none."""

    request: Request
    seconds: float  # until the call's deadline
    is_streamed: bool = False  # the body of a response with status 200 is read by `NextLine`


@dataclass(frozen=True, slots=True)
class NextLine:
    """Read a line of a streamed response; its result is None at the end, or a `ClientError`."""

    response: Response
    seconds: float  # until the call's deadline


@dataclass(frozen=True, slots=True)
class Give:
    """Give the result of one image of several to the caller; its own result is None."""

    index: int  # the image's place among them
    outcome: Any  # a `Ranking` or a `ClientError`


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep; its result is None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read an image; its result is the bytes, or the `ClientError` of the failed read."""

    image: ImageInput


Step = Send | NextLine | Sleep | Read
Steps = Generator[Step, Any, T]
StepsOfMany = Generator[Step | Give, Any, None]


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
