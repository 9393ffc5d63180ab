"""The Open Inference Protocol: validation of requests, and response bodies."""

import base64
import json
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api import base64_image
from service.api.open_inference import (
    infer_request,
    infer_response,
    json_request,
)
from service.api.open_inference.infer_request import InferRequest, ValidOutput, ValidRequest
from service.api.open_inference.infer_response import InferResponse, OutputTensor
from service.api.open_inference.tensors import OUTPUT as NAME
from service.api.open_inference.tensors import InputTensor
from service.errors import InvalidParameter, MalformedRequest, TooLarge

MOST = 4
PIXELS = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
ROW = np.random.default_rng(0).normal(0, 80, (1, 3, 224, 224)).astype(np.float32)


def image(*images: str, **other: Any) -> dict[str, Any]:
    data = [base64.b64encode(text.encode()).decode() for text in images]
    described = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
    return described | other


def pixels(**other: Any) -> dict[str, Any]:
    described = {"name": "pixels", "datatype": "UINT8", "shape": [*PIXELS.shape]}
    return described | {"data": PIXELS.tolist()} | other


def raw_elements(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def validated(body: object, raw: bytes | None = None, most: int = MOST) -> ValidRequest:
    head = json.dumps(body).encode()
    length = None if raw is None else str(len(head))
    return infer_request.validate(json_request.parse(head + (raw or b""), length), most)


def refused(body: object, raw: bytes | None = None) -> str:
    with pytest.raises((InvalidParameter, MalformedRequest, TooLarge)) as caught:
        validated(body, raw)
    return str(caught.value)


def sized(described: dict[str, Any], size: Any) -> dict[str, Any]:
    """The same input, with its values after the JSON."""
    without = {key: value for key, value in described.items() if key != "data"}
    return without | {"parameters": {"binary_data_size": size}}


# Inputs.


def test_encoded_images_are_base64_in_json_or_binary_after_it() -> None:
    for shape in ([2], [2, 1]):
        assert validated({"inputs": [image("a", "bc", shape=shape)]}).images == (b"a", b"bc")
    nested = image("a", "bc", shape=[2, 1])
    nested["data"] = [[text] for text in nested["data"]]
    assert validated({"inputs": [nested]}).images == (b"a", b"bc")
    raw = raw_elements(b"a", b"bc")
    assert validated({"inputs": [sized(image("a", "bc"), len(raw))]}, raw).images == (b"a", b"bc")


@pytest.mark.parametrize(
    ("name", "near"),
    [("view", "views"), ("Views", "views"), ("time_out", "timeout"), ("binary_data", None)],
)
def test_a_parameter_that_is_nearly_ours_is_refused(name: str, near: str | None) -> None:
    body = {"inputs": [image("a")], "parameters": {"sequence_id": 7, "priority": 0, name: "single"}}
    if near is None:
        assert validated(body).views is None
    else:
        assert refused(body) == f"there is no parameter '{name}'; did you mean {near}?"


@pytest.mark.parametrize(
    "form",
    ["BASE64", "BASE64\r\n", " \tBASE64", "data:image/jpeg;base64,BASE64", "data:;base64,BASE64",
     "DATA:image/png;name=a.png;Base64,BASE64"],
)  # fmt: skip
@pytest.mark.parametrize("data", [bytes(range(256)) * 3, bytes(3 * base64_image.PIECE + 1)])
def test_base64_is_read_in_lines_and_as_a_data_url(form: str, data: bytes) -> None:
    text = form.replace("BASE64", base64.encodebytes(data).decode())
    assert text.count("\n") >= 10
    for written in (text, text.replace("\n", "\r\n"), text.replace("\n", "")):
        assert validated({"inputs": [image("a", data=[written])]}).images == (data,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("https://example.org/a.jpg", "is a URL; send the image itself"),
        ("S3://bucket/a.jpg", "is a URL"),
        ("data:image/jpeg,%FF%D8", "a data URL without base64"),
        ("data:image/jpeg;base64", "a data URL without base64"),
        ("data:" + "x" * 300 + ";base64,eA==", "a data URL without base64"),
        ("data:image/jpeg;base64,***", "not base64"),
        ("eA=", "not base64"),
        ("eA==eA==", "not base64"),
        ("A" * (base64_image.PIECE - 4) + "eA==" + "eA==", "not base64"),  # at its end
        ("=", "not base64"),
        ("data:image/jpeg;base64,\n", "an image is empty"),
    ],
)
def test_invalid_base64_is_refused_with_the_reason(text: str, sentence: str) -> None:
    assert sentence in refused({"inputs": [image("a", data=[text])]})


@pytest.mark.parametrize("rows", [1, 2])
def test_pixels_are_flat_nested_or_raw(rows: int) -> None:
    wanted = PIXELS[:rows]
    shaped = pixels(shape=[*wanted.shape])
    for body, raw in (
        (shaped | {"data": wanted.tolist()}, None),
        (shaped | {"data": wanted.ravel().tolist()}, None),
        (sized(shaped, wanted.nbytes), wanted.tobytes()),
    ):
        images = validated({"inputs": [body]}, raw).images
        assert [part.dtype for part in images if isinstance(part, np.ndarray)] == [np.uint8] * rows
        assert np.array_equal(np.stack([*map(np.asarray, images)]), wanted)
    row = validated({"inputs": [pixels(shape=[3, 5, 3], data=PIXELS[0].tolist())]}).images
    assert np.array_equal(np.asarray(row), PIXELS[:1])  # without the dimension of images


def test_a_tensor_is_flat_or_raw_and_a_single_view() -> None:
    described = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, 224, 224]}
    whole = ROW.astype(int)
    for body, raw, wanted in (
        (described | {"data": ROW.astype(float).ravel().tolist()}, None, ROW),
        (described | {"data": whole.ravel().tolist()}, None, whole),
        (sized(described, ROW.nbytes), ROW.tobytes(), ROW),
    ):
        request = validated({"inputs": [body]}, raw)
        assert request.views == "single"
        assert isinstance(request.images[0], np.ndarray)
        assert request.images[0].dtype == np.float32
        assert np.array_equal(request.images[0], wanted[0])
    ten = {"inputs": [sized(described, ROW.nbytes)], "parameters": {"views": "ten"}}
    assert "one view" in refused(ten, ROW.tobytes())


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([image("a"), image("a")], "2 inputs; send one of image, pixels, tensor"),
        ([image("a", name="other")], "no such input; there are image, pixels, tensor"),
        ([image("a", datatype="FP32")], "image must be BYTES"),
        ([pixels(datatype="INT8")], "pixels must be UINT8"),
        ([image("a", shape=[])], "the shape of image"),
        ([image("a", shape=[0])], "the shape of image"),
        ([image("a", shape=[1, 2])], "the shape of image"),
        ([image("a", shape=[-1])], "inputs.0.shape.0"),
        ([image("a", shape=[True])], "inputs.0.shape.0"),
        ([image("a", shape=[2**40])], "inputs.0.shape.0"),
        ([pixels(shape=[2, 3, 5, 4])], "the shape of pixels must be [-1, -1, -1, 3]"),
        ([pixels(shape=[2, 3, 0, 3])], "the shape of pixels"),
        ([pixels(shape=[2, 3])], "the shape of pixels"),
        ([pixels(name="tensor", datatype="FP32")], "of tensor must be [-1, 3, 224, 224]"),
        ([image(*"abcde")], "5 images and may have 4"),
        ([pixels(shape=[5, 3, 5, 3])], "5 images and may have 4"),
        ([image("a", shape=[2])], "image has 1 elements and its shape says 2"),
        ([image("a", data=["***"])], "not base64"),
        ([image("a", data=["é"])], "not base64"),
        ([image("a", data=["abc"])], "not base64"),
        ([image("a", data=[1])], "a base64 string"),
        ([image("a", data=[None])], "a base64 string"),
        ([image("")], "an image is empty"),
        ([pixels(shape=[2, 3, 4, 3])], "says 72 values and there are 90"),
        ([pixels(shape=[1, 2**30, 2**30, 3])], "and there are 90"),
        ([pixels(data=[1.5] * 90)], "numbers of the tensor's type"),
        ([pixels(data=[True] * 90)], "numbers of the tensor's type"),
        ([pixels(data=["1"] * 90)], "numbers of the tensor's type"),
        ([pixels(data=[256] * 90)], "numbers of the tensor's type"),
        ([pixels(data=[-1] * 90)], "numbers of the tensor's type"),
        ([pixels(data=[10**30] * 90)], "numbers of the tensor's type"),
        ([pixels(data=[[1], 2])], "neither flat nor evenly nested"),
        ([pixels(data=None)], "neither data nor a binary_data_size"),
        ([pixels(parameters={"binary_data_size": 0})], "both data and a binary_data_size"),
        ([], "inputs"),
        ("image", "inputs"),
    ],
)  # fmt: skip
def test_invalid_inputs_are_refused_with_a_sentence(inputs: object, sentence: str) -> None:
    assert sentence in refused({"inputs": inputs})


@pytest.mark.parametrize(
    ("described", "raw", "sentence"),
    [
        (sized(pixels(), 90), b"x" * 91, "1 bytes after the JSON are of no input"),
        (sized(pixels(), 91), b"x" * 90, "binary_data_size is not the size"),
        (sized(pixels(), -1), b"", "binary_data_size is not the size"),
        (sized(pixels(), "90"), b"x" * 90, "binary_data_size is not the size"),
        (sized(pixels(), None), b"x", "neither data nor a binary_data_size"),
        (sized(pixels(), 91), b"x" * 91, "the shape says 90 bytes and there are 91"),
        (sized(pixels(), 89), b"x" * 89, "the shape says 90 bytes and there are 89"),
        (sized(image("a"), 3), b"\1\0\0", "do not match their lengths"),
        (sized(image("a"), 6), b"\3\0\0\0ab", "do not match their lengths"),
        (sized(image("a"), 10), b"\1\0\0\0a" * 2, "do not match their lengths"),
        (sized(image("a", "b"), 5), b"\1\0\0\0a", "1 elements and its shape says 2"),
        (sized(image("a"), 4), b"\0\0\0\0", "an image is empty"),
        (sized(image("a"), 8), b"\xff\xff\xff\xffabcd", "do not match their lengths"),
    ],
)
def test_binary_values_that_do_not_match_their_sizes_are_refused(
    described: dict[str, Any], raw: bytes, sentence: str
) -> None:
    assert sentence in refused({"inputs": [described]}, raw)


def test_a_shape_is_checked_against_the_bytes_before_anything_is_made() -> None:
    """A few bytes that say they are a terabyte cost what a few bytes do."""
    huge = sized(pixels(shape=[4, 2**20, 2**18, 3]), 4)
    tracemalloc.start()
    try:
        assert "and there are 4" in refused({"inputs": [huge]}, b"1234")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", ["0,", "[],", "{},", "[[[]]],"])
def test_json_of_too_many_values_is_refused_before_it_is_read(item: str) -> None:
    body = b'{"inputs":[' + item.encode() * json_request.MAX_VALUES + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="send a binary tensor"):
            json_request.parse(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        *((text, "Inference-Header-Content-Length must be") for text in (
            "", "-1", "x", "1e3", "²", "9" * 13)),
        ("3", "is over the 2 bytes of the body"),
    ],
)  # fmt: skip
def test_an_invalid_header_length_is_malformed(length: str, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        json_request.parse(b"{}", length)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"inputs": NaN}', b"[" * 500, b'"\\ud800"'])
def test_invalid_json_is_malformed(body: bytes) -> None:
    with pytest.raises((MalformedRequest, InvalidParameter)) as caught:
        json_request.parse(body)
    assert str(caught.value).startswith(("the body: ", "inputs: "))


# Parameters and outputs.


def of(parameters: object = None, outputs: object = None) -> ValidRequest:
    body: dict[str, object] = {"inputs": [image("a")]}
    body |= {"parameters": parameters} if parameters is not None else {}
    return validated(body | ({"outputs": outputs} if outputs is not None else {}))


def wants(**parameters: object) -> list[dict[str, object]]:
    return [{"name": "probabilities", "parameters": parameters}]


def test_missing_parameters_are_left_to_the_server() -> None:
    assert of() == ValidRequest("", (b"a",), None, None, (ValidOutput(NAME, 0, is_binary=False),))
    assert of({"priority": 3, "sequence_id": "s"}) == of()  # of extensions that are not known here
    assert of({"timeout": 0}).seconds is None


def test_a_request_has_its_views_timeout_and_id() -> None:
    request = of({"views": "dense", "timeout": 1_500_000})
    assert (request.views, request.seconds) == ("dense", 1.5)
    assert validated({"id": "7", "inputs": [image("a")]}).id == "7"


@pytest.mark.parametrize(
    ("parameters", "labels", "is_binary"),
    [
        ({}, 0, False),
        ({"classification": 5}, 5, False),
        ({"binary_data": True}, 0, True),
        ({"classification": 2, "binary_data": True}, 2, True),
    ],
)
def test_an_output_is_probabilities_or_labels_in_json_or_binary(
    parameters: dict[str, object], labels: int, *, is_binary: bool
) -> None:
    request = of(outputs=wants(**parameters))
    assert request.outputs == (ValidOutput(NAME, labels, is_binary=is_binary),)
    assert (request.labels, request.features) == (labels, False)


def test_parameters_of_an_output_override_those_of_the_request() -> None:
    assert of({"binary_data_output": True}).outputs[0].is_binary
    wanted = [*wants(binary_data=False), {"name": "features"}]
    outputs = of({"binary_data_output": True}, wanted).outputs
    assert [output.is_binary for output in outputs] == [False, True]


def test_features_may_be_asked_for_alone_or_with_labels_of_fixed_views() -> None:
    features = {"name": "features", "parameters": {"binary_data": True}}
    both = of({"views": "ten"}, [*wants(classification=3), features])
    assert (both.labels, both.features, both.views) == (3, True, "ten")
    assert of(outputs=[features]).outputs == (ValidOutput("features", 0, is_binary=True),)
    assert of(outputs=[features]).views == "single"


@pytest.mark.parametrize(
    ("parameters", "outputs", "sentence"),
    [
        ({"views": "all"}, None, "views must be one of single, ten, paper, dense, adaptive"),
        ({"views": 1}, None, "views must be one of"),
        ({"views": []}, None, "views must be one of"),
        ({"timeout": -1}, None, "whole number of microseconds"),
        ({"timeout": "1"}, None, "whole number of microseconds"),
        ({"timeout": True}, None, "whole number of microseconds"),
        ({"binary_data_output": 1}, None, "binary_data_output must be true or false"),
        (None, wants(binary_data="yes"), "binary_data must be true or false"),
        (None, wants(classification=-1), "classification must be"),
        (None, wants(classification=True), "classification must be"),
        (None, [{"name": "logits"}], "the outputs are probabilities and features"),
        (None, [*wants(), *wants()], "ask for each once"),
        (None, [{"name": "features", "parameters": {"classification": 1}}], "classification must"),
        ({"views": "auto"}, [{"name": "features"}], "fixed views; ask for single, ten, paper, d"),
        ({"views": "adaptive"}, [*wants(), {"name": "features"}], "features are of fixed views"),
    ],
)
def test_invalid_parameters_are_refused(parameters: object, outputs: object, sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        of(parameters, outputs)


# Any input.

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
inputs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "pixels", "tensor"]) | st.text(max_size=3),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | st.text(max_size=3),
        "shape": st.lists(st.integers(-1, 4) | st.sampled_from([3, 224]), max_size=5) | anything,
    },
    optional={
        "data": st.lists(anything, max_size=6) | anything,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "other"]), st.integers(-1, 40) | anything
        ),
    },
)
bodies = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=2) | anything},
    optional={
        "id": st.text(max_size=3) | anything,
        "parameters": st.dictionaries(st.sampled_from(["views", "timeout"]), anything) | anything,
        "outputs": st.lists(anything, max_size=2) | anything,
    },
)  # fmt: skip


def sentence(body: bytes, length: str | None) -> str:
    try:
        infer_request.validate(json_request.parse(body, length), MOST)
    except (InvalidParameter, MalformedRequest, TooLarge) as error:
        return str(error)
    return "understood"


@settings(deadline=None, derandomize=True, max_examples=300)
@given(body=st.binary(max_size=60), length=st.none() | st.text(max_size=3))
def test_any_bytes_are_understood_or_refused_with_a_sentence(
    body: bytes, length: str | None
) -> None:
    assert sentence(body, length)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=500)
@given(body=bodies, raw=st.none() | st.binary(max_size=40), off=st.integers(-1, 1))
def test_anything_that_looks_like_a_request_is_too(
    body: dict[str, Any], raw: bytes | None, off: int
) -> None:
    head = json.dumps(body).encode()
    length = None if raw is None else str(len(head) + off)
    assert sentence(head + (raw or b""), length)


# Answers.


def test_images_over_grpc_are_bytes() -> None:
    request = InferRequest("", {}, [InputTensor("image", "BYTES", [1], [b"a"])], [])
    assert infer_request.validate(request, MOST).images == (b"a",)


def answered(values: Any, *, is_binary: bool = False) -> InferResponse:
    output = OutputTensor(NAME, values, is_binary)
    return InferResponse("7", "fake", "1", {"views": "ten"}, [output])


PROBABILITIES = np.float32([[0.25, 0.75], [0.5, 0.5]])
LABELS = [["0.75000000:1:a:b"], ["0.50000000:0:é"]]


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "data"),
    [
        (PROBABILITIES, "FP32", [2, 2], [0.25, 0.75, 0.5, 0.5]),
        (LABELS, "BYTES", [2, 1], [label for row in LABELS for label in row]),
    ],
)
def test_an_answer_has_its_values_in_json(
    values: Any, datatype: str, shape: Sequence[int], data: Sequence[Any]
) -> None:
    described, raw = infer_response.body(answered(values))
    assert raw == b""
    output = {"name": "probabilities", "datatype": datatype, "shape": shape, "data": data}
    assert described == {
        "model_name": "fake", "model_version": "1", "id": "7",
        "parameters": {"views": "ten"}, "outputs": [output],
    }  # fmt: skip
    # No exponent, and a colon is no separator in a label.
    assert infer_response.classification("a:b", 1, 1e-7) == "0.00000010:1:a:b"


def test_an_answer_has_its_values_after_the_json_where_that_is_wanted() -> None:
    described, raw = infer_response.body(answered(PROBABILITIES, is_binary=True))
    assert described["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert "data" not in described["outputs"][0]
    assert np.array_equal(np.frombuffer(raw, "<f4").reshape(2, 2), PROBABILITIES)
    described, raw = infer_response.body(answered(LABELS, is_binary=True))
    assert raw == raw_elements(b"0.75000000:1:a:b", "0.50000000:0:é".encode())
    assert described["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}


def test_an_answer_has_no_id_where_the_request_had_none() -> None:
    nameless = InferResponse("", "fake", "1", {}, [])
    assert "id" not in infer_response.body(nameless)[0]
