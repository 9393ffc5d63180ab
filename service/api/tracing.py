"""The stages of a request as spans below the request's own, for OpenTelemetry.

They are made when all is over, of the times that were taken anyway: what is not traced pays
nothing for it.
"""

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.trace import TracerProvider

from service.errors import ServiceError
from service.serving.types import Answer


class Stages:
    """Makes spans for one provider, or for the process's own."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("googlenet-service", tracer_provider=provider)

    def trace(
        self, started: float, uploaded: float, answers: Sequence[Answer | ServiceError]
    ) -> None:
        """Trace the upload, which took `uploaded` seconds, and each answered image's stages."""
        if not trace.get_current_span().is_recording():
            return
        self._span("upload", started, uploaded, {})
        for number, answer in enumerate(answers):
            if isinstance(answer, Answer) and not answer.cached:
                at = answer.timing.started
                about = {"image": number, "batch_rows": answer.batch_rows}
                for stage, seconds in answer.timing.stages.items():
                    self._span(stage, at, seconds, about)
                    at += seconds

    def _span(self, name: str, started: float, seconds: float, about: dict[str, int]) -> None:
        """Make a span that began at a moment of `time.monotonic` and has ended."""
        begun = time.time_ns() - int((time.monotonic() - started) * 1e9)
        span = self._tracer.start_span(name, start_time=begun, attributes=about)
        span.end(begun + int(seconds * 1e9))
