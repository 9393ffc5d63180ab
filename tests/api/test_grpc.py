"""The Open Inference Protocol over gRPC: responses, errors, metrics, and how it stops."""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ROOT, FakeBackend, fake_backend, wait_ready
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from test_auth import GUARDED, KEY, OTHER, table
from test_classify import SETTINGS, Gate, plain
from test_metrics import value
from test_open_inference import parsers

from service.api import statuses
from service.api.grpc import field_count, messages
from service.api.grpc.messages import Messages
from service.api.open_inference.handler import LARGE
from service.api.open_inference.json_request import MAX_VALUES
from service.bench.process import free_port
from service.errors import CannotListen, MalformedRequest, TooLarge, WrongOption
from service.server.app import create_app
from service.settings import Settings

MESSAGES = Messages()
RED, BLUE = plain("red"), plain("blue")
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Answered:
    """What came of a call: a message, or an error's code and sentence; and what trailed it."""

    message: Any = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailing: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hosted:
    """A service that is asked over gRPC, and over HTTP for what it counted."""

    port: int
    channel: grpc.Channel
    http: TestClient

    def call(
        self, method: str, data: bytes | None = None, *, timeout: float | None = None,
        headers: dict[str, str] | None = None, **fields: Any,
    ) -> Answered:  # fmt: skip
        """Call a method with a message of these fields, or with these bytes."""
        if data is None:
            data = MESSAGES.make(f"{method}Request", **fields).SerializeToString()
        ask: Any = self.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        metadata = tuple((headers or {}).items())
        try:
            answer, call = ask.with_call(data, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error
            trailing = dict(failed.trailing_metadata())
            return Answered(None, failed.code(), failed.details(), trailing)
        message = MESSAGES.read(f"{method}Response", answer)
        return Answered(message, trailing=dict(call.trailing_metadata()))

    def infer(self, *inputs: dict[str, Any], **fields: Any) -> Answered:
        """Ask the fake model."""
        return self.call("ModelInfer", model_name="fake", inputs=inputs, **fields)


@contextmanager
def hosting(backend: FakeBackend, chosen: Settings = SETTINGS, **options: Any) -> Iterator[Hosted]:
    port = free_port()
    chosen = chosen.model_copy(update={"grpc_port": port})
    app = create_app(chosen, load=lambda *_: backend, **options)
    with TestClient(app) as http, grpc.insecure_channel(f"{chosen.host}:{port}") as channel:
        wait_ready(http)
        yield Hosted(port, channel, http)


@pytest.fixture(scope="module")
def gate() -> Gate:
    """The executor of `hosted`."""
    return Gate()


@pytest.fixture(scope="module")
def hosted(gate: Gate) -> Iterator[Hosted]:
    """A ready service on a fake model."""
    with hosting(
        fake_backend(gate), SETTINGS.model_copy(update={"max_body_bytes": 900_000})
    ) as made:
        yield made


def image(*images: bytes, **other: Any) -> dict[str, Any]:
    contents = {"bytes_contents": images}
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)],
            "contents": contents} | other  # fmt: skip


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def test_a_large_message_is_parsed_in_a_thread_and_a_small_one_is_not() -> None:
    chosen = SETTINGS.model_copy(update={"max_body_bytes": 2_000_000})
    with hosting(fake_backend(), chosen) as made:
        before = parsers()
        assert made.infer(image(RED)).code == grpc.StatusCode.OK
        assert parsers() == before
        assert made.infer(image(RED + bytes(LARGE))).code == grpc.StatusCode.OK
        assert len(parsers() - before) == 1


def said(name: str, value: Any, kind: str = "string") -> dict[str, Any]:
    return {name: {f"{kind}_param": value}}


def rows(answered: Answered) -> list[list[float]]:
    (output,) = answered.message.outputs
    raw = answered.message.raw_output_contents
    values = np.frombuffer(raw[0], "<f4") if raw else np.float32(output.contents.fp32_contents)
    probabilities: list[list[float]] = values.reshape(output.shape).tolist()
    return probabilities


def refused(answered: Answered, code: grpc.StatusCode) -> str:
    assert answered.code == code, answered
    assert answered.trailing["x-request-id"]
    return answered.details


# Responses.


def test_the_server_and_its_models_are_described(hosted: Hosted) -> None:
    assert hosted.call("ServerLive").message.live
    assert hosted.call("ServerReady").message.ready
    assert [*hosted.call("ServerMetadata").message.extensions] == [
        *("binary_tensor_data", "classification")
    ]
    for version in ("", "1"):
        assert hosted.call("ModelReady", name="fake", version=version).message.ready
        model = hosted.call("ModelMetadata", name="fake", version=version).message
        assert [*model.versions] == ["1"]
        assert {tensor.name: [*tensor.shape] for tensor in model.inputs} == {
            "image": [-1],
            "pixels": [-1, -1, -1, 3],
            "tensor": [-1, 3, 224, 224],
        }
        assert [*model.outputs[0].shape] == [-1, 3]


def test_values_are_typed_or_raw_in_requests_and_responses(hosted: Hosted) -> None:
    typed = hosted.infer(image(RED, BLUE), id="7")
    assert rows(typed) == [[1, 0, 0], [0, 0, 1]]
    assert not typed.message.raw_output_contents
    assert (typed.message.id, typed.message.model_version) == ("7", "1")
    assert typed.message.parameters["views"].string_param == "ten"
    bare = {"name": "image", "datatype": "BYTES", "shape": [1]}
    raw = hosted.infer(bare, raw_input_contents=[len(RED).to_bytes(4, "little") + RED])
    assert rows(raw) == [[1, 0, 0]]
    assert not raw.message.outputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            tensor("pixels", "UINT8", 1, 1, 2, 3)
            | {"contents": {"uint_contents": [0, 0, 255] * 2}},
            [0, 0, 1],
        ),
        (
            tensor("tensor", "FP32", 1, 3, 224, 224)
            | {"contents": {"fp32_contents": [9.5] * 150528}},
            [1 / 3] * 3,
        ),
    ],
)
def test_numbers_may_be_typed(given: dict[str, Any], expected: list[float], hosted: Hosted) -> None:
    assert rows(hosted.infer(given)) == [pytest.approx(expected)]


def test_labels_are_returned_where_requested(hosted: Hosted) -> None:
    wanted = {"name": "probabilities", "parameters": said("classification", 2, "int64")}
    answer = hosted.infer(image(BLUE), outputs=[wanted], parameters=said("views", "single"))
    (output,) = answer.message.outputs
    assert (output.datatype, [*output.shape]) == ("BYTES", [1, 2])
    assert [*output.contents.bytes_contents] == [b"1.00000000:2:blue", b"0.00000000:0:red"]
    assert answer.message.parameters["views"].string_param == "single"


def test_features_are_raw_where_the_image_is_and_typed_where_it_is_not() -> None:
    outputs = [{"name": "features"}, {"name": "probabilities"}]
    raw = {"raw_input_contents": [len(RED).to_bytes(4, "little") + RED]}
    with hosting(fake_backend(explains=True)) as made:
        described = made.call("ModelMetadata", name="fake").message.outputs
        assert [(one.name, [*one.shape]) for one in described] == [
            ("probabilities", [-1, 3]), ("features", [-1, 3])
        ]  # fmt: skip
        typed = made.infer(image(RED), outputs=outputs).message
        assert [[*one.contents.fp32_contents] for one in typed.outputs] == [[255, 0, 0], [1, 0, 0]]
        other = made.infer(tensor("image", "BYTES", 1), outputs=outputs, **raw).message
        assert [np.frombuffer(values, "<f4").tolist() for values in other.raw_output_contents] == [
            [255, 0, 0], [1, 0, 0]
        ]  # fmt: skip


# Errors.


def test_an_invalid_request_is_refused_with_its_status(hosted: Hosted) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for method in ("ModelReady", "ModelMetadata"):
        answer = hosted.call(method, name="no")
        assert "there is no model 'no'" in refused(answer, grpc.StatusCode.NOT_FOUND)
    unknown = hosted.call("ModelInfer", model_name="fake", model_version="2", inputs=[image(RED)])
    assert "there is no model" in refused(unknown, grpc.StatusCode.NOT_FOUND)
    for answered, sentence in (
        (hosted.infer(), "0 inputs; send one"),
        (hosted.infer(image(RED[:40])), "broken or cut short"),
        (hosted.infer(image(RED, RED[:40])), "row 1: "),
        (hosted.infer(image(*[RED] * 4)), "has 4 images and may have 3"),
        (hosted.infer(image(RED, datatype="STRING")), "image must be BYTES"),
        (hosted.infer(image(RED), raw_input_contents=[b"", b""]), "1 inputs have 2 raw contents"),
        (hosted.infer(image(RED), parameters=said("views", "all")), "views must be one of"),
        (hosted.infer(image(RED), parameters={"timeout": {"double_param": 1.0}}), "microseconds"),
        (hosted.call("ModelInfer", b"\xff"), "the message is broken"),
        (hosted.call("ModelInfer", b"\x0a\x01\xff"), "the message is broken"),
        (hosted.call("ModelInfer", b"\x2a\x00" * 9000), "over 8192 fields"),
    ):
        assert sentence in refused(answered, invalid)
    assert hosted.infer(image(RED), parameters={"views": {}}).code == grpc.StatusCode.OK
    large = hosted.infer(image(bytes(1_000_000)))
    assert large.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in large.details


def test_every_error_has_a_status_that_grpc_knows() -> None:
    known = {code.name for code in grpc.StatusCode}
    assert {status.grpc for status in statuses.STATUS.values()} <= known


def test_a_deadline_is_the_calls_or_the_parameters_whichever_is_sooner(
    gate: Gate, hosted: Hosted
) -> None:
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    soon = {"timeout": {"int64_param": 100_000}}
    for timeout, parameters in ((None, soon), (15.0, soon), (0.2, {})):
        with gate.shut():
            answer = hosted.infer(image(RED), timeout=timeout, parameters=parameters)
        assert answer.code == late, answer
        assert rows(hosted.infer(image(RED))) == [[1, 0, 0]]  # all that is in flight has ended
    microsecond = {"timeout": {"int64_param": 1}}
    assert refused(hosted.infer(image(RED), parameters=microsecond), late)


def test_a_cancelled_call_is_counted_as_disconnected(gate: Gate, hosted: Hosted) -> None:
    data = MESSAGES.make("ModelInferRequest", model_name="fake", inputs=[image(RED)])
    series = ("googlenet_requests_total", "499", "POST", "interactive", INFER)
    before = value(hosted.http, *series)
    with gate.shut():
        ask: Any = hosted.channel.unary_unary(INFER)
        call = ask.future(data.SerializeToString())
        assert gate.entered.wait(20)
        call.cancel()
        while value(hosted.http, *series) == before:
            pass
    assert rows(hosted.infer(image(RED))) == [[1, 0, 0]]


def test_overload_is_unavailable_with_the_time_to_wait(gate: Gate) -> None:
    """A row costs a second, so that one row is done in time and two are not."""
    chosen = SETTINGS.model_copy(
        update={"timeout_seconds": 1.5, "views": "single", "max_inflight_body_bytes": 4096}
    )
    with (
        hosting(fake_backend(gate, seconds_per_row=1.0), chosen) as hosted,
        ThreadPoolExecutor(1) as thread,
    ):
        with gate.shut():
            first = thread.submit(hosted.infer, image(RED))
            assert gate.entered.wait(20)
            second = hosted.infer(image(RED))
        assert refused(second, grpc.StatusCode.UNAVAILABLE)
        assert int(second.trailing["retry-after"]) >= 1
        assert int(second.trailing["grpc-retry-pushback-ms"]) > 0
        assert rows(first.result()) == [[1, 0, 0]]
        # Messages share the memory of uploads.
        large = hosted.infer(image(np.random.default_rng(0).bytes(2000)))
        assert "over 4096 bytes" in refused(large, grpc.StatusCode.INVALID_ARGUMENT)


def test_an_unexpected_exception_is_logged_and_not_returned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = fake_backend()
    with hosting(backend) as own:
        backend.ensemble = None  # type: ignore[assignment]
        failed = own.call("ModelMetadata", name="fake")
        assert (failed.code, failed.details) == (
            grpc.StatusCode.INTERNAL, "an internal error; it was logged",
        )  # fmt: skip
        backend.ensemble = fake_backend().ensemble
    assert "ModelMetadata failed" in caplog.text


# Keys, names, the log.


def test_a_key_is_needed_except_for_health() -> None:
    with hosting(fake_backend(), GUARDED) as hosted:
        assert hosted.call("ServerLive").message.live
        assert hosted.call("ServerReady").message.ready
        for headers in ({}, {"x-api-key": "unknown"}, {"authorization": "Basic x"}):
            answer = hosted.infer(image(RED), headers=headers)
            assert "send your API key" in refused(answer, grpc.StatusCode.UNAUTHENTICATED)
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {OTHER}"}):
            assert rows(hosted.infer(image(RED), headers=headers)) == [[1, 0, 0]]


def test_both_protocols_use_up_the_same_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", KEY, "2/day"))
    with hosting(fake_backend(), Settings(model="fake", api_keys_file=file)) as hosted:
        headers = {"x-api-key": KEY}
        assert hosted.http.get("/models", headers=headers).status_code == 200
        assert hosted.call("ModelReady", name="fake", headers=headers).message.ready
        late = hosted.call("ModelReady", name="fake", headers=headers)
        assert "no requests left" in refused(late, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert int(late.trailing["retry-after"]) > 1000
        calls = ("web", "rate_limited")
        assert value(hosted.http, "googlenet_key_requests_total", *calls) == 1


def test_calls_are_counted_and_logged_as_requests_are(
    hosted: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    series = ("googlenet_requests_total", "200", "POST", "interactive", INFER)
    before = value(hosted.http, *series)
    with caplog.at_level(logging.INFO, logger="service.api.grpc.service"):
        answer = hosted.infer(image(RED, BLUE), headers={"x-request-id": "mine"})
        hosted.call("ServerLive")
    assert answer.trailing["x-request-id"] == "mine"
    assert value(hosted.http, *series) == before + 1
    (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
    assert (line["route"], line["id"], line["status"]) == (INFER, "mine", 200)
    assert (line["views"], line["images"]) == ("ten", 2)


# Start and stop.


def test_requests_in_flight_are_answered_when_the_server_stops(gate: Gate) -> None:
    leaving = threading.Event()
    with (
        hosting(fake_backend(gate), is_leaving=leaving.is_set) as hosted,
        ThreadPoolExecutor(1) as thread,
    ):
        with gate.shut():
            first = thread.submit(hosted.infer, image(RED))
            assert gate.entered.wait(20)
            leaving.set()
            assert not hosted.call("ServerReady").message.ready
            portal: Any = hosted.http.portal
            portal.call(_leave, hosted.http.app)
            late = hosted.call("ServerLive", timeout=5)
            assert late.code == grpc.StatusCode.UNAVAILABLE
        assert rows(first.result()) == [[1, 0, 0]]


async def _leave(app: Any) -> None:
    app.state.leave()
    app.state.leave()  # as it ends, too
    await asyncio.sleep(0.2)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port_is_an_error(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        app = create_app(
            SETTINGS.model_copy(update={"host": host, "grpc_port": port}),
            load=lambda *_: fake_backend(),
        )
        sentence = f"cannot bind port {port} of {host} for gRPC"
        with pytest.raises(CannotListen, match=sentence), TestClient(app):
            pass


def test_two_servers_do_not_share_a_port() -> None:
    with hosting(fake_backend()) as hosted:
        again = SETTINGS.model_copy(update={"grpc_port": hosted.port})
        with (
            pytest.raises(CannotListen),
            TestClient(create_app(again, load=lambda *_: fake_backend())),
        ):
            pass


def test_grpc_is_imported_only_with_a_grpc_port() -> None:
    program = (
        "import sys; from service.server import serve, app; from service.settings import Settings;"
        "app.create_app(Settings()); assert 'grpc' not in sys.modules; assert 'torch' not in"
        " sys.modules; app.create_app(Settings(grpc_port=1)); assert 'grpc' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)  # noqa: S603 - ours


def test_without_grpc_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [name for name in sys.modules if name.startswith("service.api.grpc.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("service.api.grpc.server", raising=False)
    with pytest.raises(WrongOption, match=r"pip install 'googlenet-service\[grpc\]'"):
        create_app(SETTINGS.model_copy(update={"grpc_port": 1}))


# Messages.


def test_the_descriptions_are_made_of_the_proto_file(tmp_path: Path) -> None:
    folder = ROOT / "service/api/grpc"
    made = tmp_path / "made.binpb"
    subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}",
         folder / "open_inference.proto"],
        check=True, timeout=60,
    )  # fmt: skip
    assert made.read_bytes() == (folder / messages.FILE).read_bytes(), "run make proto"


def test_too_many_typed_values_are_refused_before_they_are_listed() -> None:
    tensor = {"name": "tensor", "datatype": "FP32", "shape": [7, 3, 224, 224],
              "contents": {"fp32_contents": np.zeros(MAX_VALUES + 1, np.float32)}}  # fmt: skip
    with pytest.raises(TooLarge, match="send the tensor raw"):
        messages.request(MESSAGES.make("ModelInferRequest", inputs=[tensor]))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    with suppress(MalformedRequest):
        message = MESSAGES.read("ModelInferRequest", data)
        assert messages.request(message).id == message.id


def test_fields_are_counted_also_within_those_that_are_looked_into() -> None:
    inner = b"\x0a\x01a" * 10
    data = memoryview(b"\x2a" + bytes([len(inner)]) + inner + b"\x08\x01\x11" + bytes(8))
    field_count.check(data, {5: {}}, 13)
    field_count.check(data, {}, 3)
    for within, most in (({5: {}}, 12), ({}, 2)):
        with pytest.raises(MalformedRequest, match="fields; send tensors raw"):
            field_count.check(data, within, most)  # type: ignore[arg-type]
