"""gRPC health, reflection and repository index; and pings."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from conftest import fake_backend
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from starlette.testclient import TestClient
from test_auth import GUARDED, KEY
from test_classify import SETTINGS, Gate, plain
from test_grpc import Hosted, hosting, image

from service.api.grpc import health, reflection

SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    """A ready service on a fake model."""
    with hosting(fake_backend()) as made:
        yield made


def check(hosted: Hosted, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(hosted.channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
    return status


def watch(hosted: Hosted, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(hosted.channel).Watch(
        health_pb2.HealthCheckRequest(service=service), timeout=20
    )


# Health.


def test_health_is_that_of_the_probe() -> None:
    leaving = threading.Event()
    backend = fake_backend()
    with hosting(backend, is_leaving=leaving.is_set) as made:
        assert [check(made), check(made, SERVICE)] == [SERVING, SERVING]
        backend.stalled = 99.0
        assert made.http.get("/readyz").status_code == 503
        assert check(made) == NOT_SERVING
        backend.stalled = 0.0
        assert check(made) == SERVING
        leaving.set()
        assert check(made, SERVICE) == NOT_SERVING


def test_health_of_another_service_is_not_found(hosted: Hosted) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(hosted, "other.Service")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert SERVICE in caught.value.details()


def test_health_and_reflection_need_no_key() -> None:
    with hosting(fake_backend(), GUARDED) as made:
        assert check(made) == SERVING
        assert SERVICE in listed(made)
        assert made.call("RepositoryIndex").code == grpc.StatusCode.UNAUTHENTICATED
        headers = {"x-api-key": KEY}
        assert made.call("RepositoryIndex", headers=headers).code == grpc.StatusCode.OK


def test_watch_sends_each_change_and_the_end() -> None:
    backend = fake_backend()
    with ExitStack() as later, ThreadPoolExecutor() as threads:
        with hosting(backend) as made:
            # A channel that is closed after the service has ended.
            channel = later.enter_context(grpc.insecure_channel(f"127.0.0.1:{made.port}"))
            outer = Hosted(made.port, channel, made.http)
            coming = watch(outer)
            assert next(coming).status == SERVING
            backend.stalled = 99.0
            assert next(coming).status == NOT_SERVING
            backend.stalled = 0.0
            assert next(coming).status == SERVING
            unknown = watch(outer, "other.Service")
            assert next(unknown).status == UNKNOWN
            rest = threads.submit(lambda: [message.status for message in coming])
        assert rest.result() == [NOT_SERVING]
        assert [message.status for message in unknown] == []


def test_a_stop_does_not_wait_for_watch_streams() -> None:
    patient = SETTINGS.model_copy(update={"grace_seconds": 600.0})
    with hosting(fake_backend(), patient) as made:
        assert next(watch(made)).status == SERVING
        assert next(watch(made)).status == SERVING


def test_the_number_of_watch_streams_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_MAX_STREAMS", 2)
    with hosting(fake_backend()) as made:
        first, second = watch(made), watch(made)
        assert [next(first).status, next(second).status] == [SERVING, SERVING]
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(made))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        assert eventually(lambda: next(watch(made)).status) == SERVING
        assert check(made) == SERVING


def eventually(ask: Callable[[], int]) -> int:
    """Ask until what was cancelled has ended."""
    for _ in range(100):
        try:
            return ask()
        except grpc.RpcError:
            time.sleep(0.05)
    pytest.fail("a stream that was cancelled is still counted")


# Reflection.


def reflection_call(hosted: Hosted, name: str = reflection.NAMES[0]) -> Any:
    return hosted.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )


def reflected(hosted: Hosted, name: str = reflection.NAMES[0], **query: str) -> Any:
    request = reflection_pb2.ServerReflectionRequest(**query)
    (answer,) = reflection_call(hosted, name)(iter([request]), timeout=10)
    return answer


def listed(hosted: Hosted) -> Sequence[str]:
    services = reflected(hosted, list_services="").list_services_response.service
    return [service.name for service in services]


@pytest.mark.parametrize("name", reflection.NAMES)
def test_reflection_describes_every_service_it_lists(name: str, hosted: Hosted) -> None:
    assert listed(hosted) == [
        *("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE)
    ]
    described = set()
    for symbol in listed(hosted):
        answer = reflected(hosted, name, file_containing_symbol=symbol)
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            described |= {f"{file.package}.{service.name}" for service in file.service}
    assert described == {*listed(hosted)}


def test_a_stream_of_reflection_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "_SECONDS", 0.05)
    waiting = threading.Event()

    def never() -> Iterator[Any]:
        waiting.wait(20)
        yield from ()

    with hosting(fake_backend()) as made:
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection_call(made)(never(), timeout=10))
        waiting.set()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "a stream may last 0.05 s"


# The index of models.


def test_the_index_says_which_models_are_ready() -> None:
    backend = fake_backend()
    with hosting(backend) as made:
        (model,) = made.call("RepositoryIndex").message.models
        assert (model.name, model.version, model.state, model.reason) == ("fake", "1", "READY", "")
        backend.stalled = 99.0
        (model,) = made.call("RepositoryIndex", repository_name="any").message.models
        assert model.state == "UNAVAILABLE"
        assert model.reason
        assert not made.call("RepositoryIndex", ready=True).message.models


def test_the_index_is_served_over_http_too(hosted: Hosted) -> None:
    client: TestClient = hosted.http
    for body in ({}, {"ready": True}, {"ready": False, "repository_name": ""}):
        answer = client.post("/v2/repository/index", json=body)
        assert answer.json() == [{"name": "fake", "version": "1", "state": "READY", "reason": ""}]
    assert client.post("/v2/repository/index").json() == answer.json()
    for wrong, status in (
        (b'{"ready": "maybe"}', 422),
        (b"{", 400),
        (b"[]", 422),
        (5000 * b" ", 413),
    ):
        refused = client.post("/v2/repository/index", content=wrong)
        assert (refused.status_code, [*refused.json()]) == (status, ["error"])


# Pings.


@pytest.mark.slow
def test_a_client_that_pings_every_second_is_not_ended() -> None:
    gate = Gate()
    with hosting(fake_backend(gate)) as made, ThreadPoolExecutor() as threads:
        options = [
            ("grpc.keepalive_time_ms", 1500),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        with grpc.insecure_channel(f"127.0.0.1:{made.port}", options) as channel:
            pinging = Hosted(made.port, channel, made.http)
            with gate.shut():
                waiting = threads.submit(pinging.infer, image(plain("red")))
                assert gate.entered.wait(10)
                time.sleep(9)  # for six pings: of the fourth at the latest the default ends it
            assert waiting.result().code == grpc.StatusCode.OK
