"""OpenTelemetry spans for the stages of a request, below the request's own span.

They are made at the end, from times that are measured anyway: an untraced request costs nothing.
"""

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.trace import TracerProvider

from service.errors import ServiceError
from service.serving.types import Answer


class Stages:
    """Makes spans with a provider, or with the process's own."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("googlenet-service", tracer_provider=provider)

    def trace(
        self, started: float, uploaded: float, answers: Sequence[Answer | ServiceError]
    ) -> None:
        """Trace the upload, which took `uploaded` seconds, and each classified image's stages."""
        if not trace.get_current_span().is_recording():
            return
        self._span("upload", started, uploaded, {})
        for number, answer in enumerate(answers):
            if isinstance(answer, Answer) and not answer.cached:
                start = answer.timing.started
                attributes = {"image": number, "batch_rows": answer.batch_rows}
                for stage, seconds in answer.timing.stages.items():
                    self._span(stage, start, seconds, attributes)
                    start += seconds

    def _span(self, name: str, started: float, seconds: float, attributes: dict[str, int]) -> None:
        """Make a finished span; `started` is of `time.monotonic`."""
        start_ns = time.time_ns() - int((time.monotonic() - started) * 1e9)
        span = self._tracer.start_span(name, start_time=start_ns, attributes=attributes)
        span.end(start_ns + int(seconds * 1e9))
