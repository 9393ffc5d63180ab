"""Traces: a client's trace continues, each stage has a span, and metrics link to traces."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from conftest import fake_backend, wait_ready
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from starlette.testclient import TestClient
from test_classify import parts, plain, service

from service.server.app import create_app
from service.settings import Settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
STAGES = ["upload", "decode", "queue", "inference"]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """Where spans go."""
    return InMemorySpanExporter()


@contextmanager
def traced(spans: InMemorySpanExporter, **options: Any) -> Iterator[TestClient]:
    """A client of a ready service on a fake model, whose spans go there."""
    provider = TracerProvider(**options)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = create_app(
        Settings(model="fake"), load=lambda *_: fake_backend(), tracer_provider=provider
    )
    with TestClient(app) as client:
        wait_ready(client)
        yield client


@pytest.fixture
def client(spans: InMemorySpanExporter) -> Iterator[TestClient]:
    """A client of a traced service."""
    with traced(spans) as client:
        yield client


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def context(span: ReadableSpan) -> tuple[str, str]:
    """Give a span's trace and its own number."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def test_a_clients_trace_continues_in_the_request_and_each_stage(
    client: TestClient, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        answer = client.post("/classify", files=parts(plain("red")), headers=CLIENT)
    made = named(spans)
    request = made.pop("POST /classify")
    trace, number = context(request)
    assert (trace, f"{request.parent.span_id:016x}" if request.parent else "") == (TRACE, PARENT)
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{number}-01"
    assert [*made] == STAGES
    times = [request.start_time or 0]
    for span in made.values():
        assert span.parent is not None
        assert (context(span)[0], f"{span.parent.span_id:016x}") == (trace, number)
        times += [span.start_time or 0, span.end_time or 0]
    times.append(request.end_time or 0)
    # Each begins where the one before ended, to the clocks' millisecond.
    assert all(before <= after + 1_000_000 for before, after in pairwise(times))
    assert times[0] > 0
    (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
    assert line["trace_id"] == TRACE


def test_every_image_has_its_stages_and_a_bad_image_has_none(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    files = [*parts(plain("red")), ("file", ("bad.jpg", b"bad")), *parts(plain("blue"))]
    client.post("/classify", files=files, headers=CLIENT)
    decoded = [span for span in spans.get_finished_spans() if span.name == "decode"]
    assert [(span.attributes or {})["image"] for span in decoded] == [0, 2]
    assert all((span.attributes or {})["batch_rows"] for span in decoded)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
def test_probes_and_scrapes_are_not_traced(
    path: str, client: TestClient, spans: InMemorySpanExporter
) -> None:
    answer = client.get(path, headers=CLIENT)
    assert "traceresponse" not in answer.headers
    assert spans.get_finished_spans() == ()


def test_metrics_point_to_a_trace_in_openmetrics(client: TestClient) -> None:
    client.post("/classify", files=parts(plain("red")), headers=CLIENT)
    plain_text = client.get("/metrics").text
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    buckets = re.findall(
        r'googlenet_request_duration_seconds_bucket\{.*\} 1.0 # \{trace_id="(\w+)"\}', openmetrics
    )
    assert buckets == [TRACE]
    assert TRACE not in plain_text


def test_a_trace_that_is_not_sampled_has_no_spans(spans: InMemorySpanExporter) -> None:
    with traced(spans, sampler=ALWAYS_OFF) as client:
        assert client.post("/classify", files=parts(plain("red"))).status_code == 200
    assert spans.get_finished_spans() == ()


def test_without_an_exporter_there_are_no_traces() -> None:
    with service(lambda *_: fake_backend()) as client:
        answer = client.post("/classify", files=parts(plain("red")), headers=CLIENT)
        assert "traceresponse" not in answer.headers
