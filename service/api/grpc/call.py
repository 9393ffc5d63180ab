"""One gRPC call: its headers, and what the log and the metrics record of it."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from grpc import aio

from service.api.middleware import request_log, security_headers
from service.errors import ServiceError, Unavailable

OK = 200
_BUG = 500
_PRIORITY = security_headers.PRIORITY.encode()

Context = aio.ServicerContext[bytes, bytes]


@dataclass(slots=True)
class Call:
    """A call in progress."""

    method: str
    context: Context
    headers: Mapping[bytes, bytes]
    started: float = field(default_factory=time.monotonic)
    status: int = _BUG  # HTTP's, so that metrics have one set of values
    nbytes: int = 0  # of the message
    notes: dict[str, Any] = field(default_factory=dict)  # for the log

    @classmethod
    def of(cls, method: str, context: Context) -> Self:
        """Begin a call, with the client's `x-request-id` if it is a valid one."""
        headers = {
            str(key).encode(): value if isinstance(value, bytes) else str(value).encode("latin-1")
            for key, value in context.invocation_metadata() or ()
        }
        call = cls(method, context, headers)
        call.notes["id"] = request_log.named(headers.get(b"x-request-id", b"").decode("latin-1"))
        return call

    @property
    def route(self) -> str:
        """The call's HTTP/2 path, its label in metrics."""
        return f"/inference.GRPCInferenceService/{self.method}"

    @property
    def is_background(self) -> bool:
        """Tell whether the call is background work."""
        return security_headers.is_background(self.headers.get(_PRIORITY, b"").decode("latin-1"))

    def trailers(self, error: ServiceError | None = None) -> tuple[tuple[str, str], ...]:
        """Give the trailing metadata: the call's id, and when to retry, also for gRPC's retries."""
        request_id = ("x-request-id", str(self.notes["id"]))
        if not isinstance(error, Unavailable):
            return (request_id,)
        return (
            request_id,
            ("retry-after", str(max(1, math.ceil(error.retry_after)))),
            ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),
        )
