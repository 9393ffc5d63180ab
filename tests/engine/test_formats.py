"""Weights files: reading, and the errors of invalid ones."""

import argparse
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.formats import caffemodel, checkpoint, pickled, safetensor
from service.errors import BadWeights

# torch.load warns of this before it refuses; as an error here it would be refused for that.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

Reader = Callable[[Path], object]
NetParameter = type(caffemodel._net_parameter())  # noqa: SLF001 - writes what the reader reads


def refusal(read: Reader, path: Path) -> str:
    """Return the error of a refused file."""
    with pytest.raises(BadWeights) as caught:
        read(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# Caffe


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field in protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    low = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 0x80 for part in low[:-1]), low[-1]])


def caffe_file(folder: Path, content: bytes) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return path


def layer(shape: list[int], values: list[float], name: str = "conv1", of: str = "data") -> bytes:
    """A file of one layer with one blob, in the newer container."""
    net = NetParameter()
    blob = net.layer.add(name=name).blobs.add(**{of: values})
    blob.shape.SetInParent()
    blob.shape.dim.extend(shape)
    return net.SerializeToString()


def legacy_layer(shape: tuple[int, int, int, int], values: list[float]) -> bytes:
    """A file of one layer with one blob, in the V1 container."""
    net = NetParameter()
    num, channels, height, width = shape
    net.layers.add(name="conv1").blobs.add(
        data=values, num=num, channels=channels, height=height, width=width
    )
    return net.SerializeToString()


def test_caffe_layers_keep_their_shape(tmp_path: Path) -> None:
    net = NetParameter()
    conv = net.layer.add(name="conv1")
    weight, bias = conv.blobs.add(data=range(6)), conv.blobs.add(data=[7])
    weight.shape.dim.extend([3, 2])
    bias.shape.dim.extend([1])
    blobs = caffemodel.read(caffe_file(tmp_path, net.SerializeToString()))
    assert blobs.keys() == {"conv1"}
    assert [blob.tolist() for blob in blobs["conv1"]] == [[[0, 1], [2, 3], [4, 5]], [7]]
    assert {blob.dtype for blob in blobs["conv1"]} == {torch.float32}


MIXED_CONTAINERS = legacy_layer((1, 3, 2, 1), [*range(6)]) + layer([2], [6, 7], name="conv2")


@pytest.mark.parametrize(
    ("content", "blobs"),
    [
        (
            MIXED_CONTAINERS,
            {"conv1": torch.arange(6.0).reshape(1, 3, 2, 1), "conv2": torch.tensor([6.0, 7.0])},
        ),
        (layer([2], [0.1, 0.2], of="double_data"), {"conv1": torch.tensor([0.1, 0.2])}),
        (layer([1], [1e300], of="double_data"), {"conv1": torch.tensor([torch.inf])}),
        (layer([], [3], name="scale"), {"scale": torch.tensor(3.0)}),
        (layer([1] * 100, [5]), {"conv1": torch.full([1] * 100, 5.0)}),  # numpy allows 64
    ],
    ids=["mixed containers", "doubles", "too large for a float", "scalar", "100 dimensions"],
)
def test_caffe_blobs(content: bytes, blobs: dict[str, Tensor], tmp_path: Path) -> None:
    read = caffemodel.read(caffe_file(tmp_path, content))
    assert read.keys() == blobs.keys()
    for name, expected in blobs.items():
        (blob,) = read[name]
        assert blob.dtype == torch.float32
        assert torch.equal(blob, expected)


def test_caffe_fields_without_weights_are_skipped(tmp_path: Path) -> None:
    """Layers without blobs, and fields the schema does not name, on every level of the file."""
    known = field(5, np.array([1, 2], "<f4").tobytes())
    blob = field(9, b"a field of a later Caffe") + known + field(7, field(1, b"\x02"))
    conv = field(1, b"conv1") + field(2, b"Convolution") + field(7, blob) + field(106, b"\x08\x40")
    content = field(1, b"GoogLeNet") + field(100, field(1, b"relu1")) + field(100, conv)
    blobs = caffemodel.read(caffe_file(tmp_path, content))
    assert {name: [blob.tolist() for blob in of] for name, of in blobs.items()} == {
        "conv1": [[1, 2]]
    }


def test_published_weights_are_read(shared: Path) -> None:
    blobs = caffemodel.read(shared / "weights/bvlc_googlenet.caffemodel")
    assert sum(len(of) == 2 for of in blobs.values()) == 58
    assert sum(blob.numel() for of in blobs.values() for blob in of) == 6_998_552


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (layer([2, 2], [1, 2, 3]), "[2, 2] but holds 3 numbers"),
        (layer([-1, -3], [1, 2, 3]), "[-1, -3] but holds 3 numbers"),
        (layer([0], []), "[0] but holds 0 numbers"),
        (layer([2**32, 2**32], []), "[4294967296, 4294967296] but holds 0 numbers"),
        (layer([2**62, 4], [1]), "[4611686018427387904, 4] but holds 1 numbers"),
        (legacy_layer((1, 1, 1, 3), [1]), "[1, 1, 1, 3] but holds 1 numbers"),
        (legacy_layer((-1, -1, 1, 1), [1]), "[-1, -1, 1, 1] but holds 1 numbers"),
        (legacy_layer((2**31 - 1,) * 4, [1]), "but holds 1 numbers"),
        (legacy_layer((0, 0, 0, 0), [1, 2]), "[0, 0, 0, 0] but holds 2 numbers"),
    ],
)
def test_caffe_blob_with_a_wrong_shape_is_refused(
    content: bytes, said: str, tmp_path: Path
) -> None:
    sentence = refusal(caffemodel.read, caffe_file(tmp_path, content))
    assert sentence.startswith("layer 'conv1' says it is ")
    assert said in sentence


NO_CAFFE_MODELS = {
    "empty": b"",
    "web page": b"<!DOCTYPE html><title>404 Not Found</title>",
    "no weights": field(100, field(1, b"a layer without weights")),
    "no layers": field(1, b"a net without layers"),
    "nested": b"\x13" * 100_000,
    "length": varint(100 << 3 | 2) + varint(2**40),
}


@pytest.mark.parametrize("content", NO_CAFFE_MODELS.values(), ids=NO_CAFFE_MODELS)
def test_other_files_as_caffe_model_are_refused(content: bytes, tmp_path: Path) -> None:
    sentence = refusal(caffemodel.read, caffe_file(tmp_path, content))
    assert sentence.startswith("net.caffemodel is not a Caffe model")


def test_published_weights_that_are_cut_short_are_refused(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.caffemodel"
    shutil.copyfile(shared / "weights/bvlc_googlenet.caffemodel", path)
    size = path.stat().st_size
    for left in [size - 1, size - 5, *(size * part // 20 for part in range(19, 0, -1)), 100, 3, 1]:
        os.truncate(path, left)
        assert (
            refusal(caffemodel.read, path) == "cut.caffemodel is not a Caffe model, or is cut short"
        )


# PyTorch


def pth_file(folder: Path, content: object, **how: Any) -> Path:
    path = folder / "net.pth"
    torch.save(content, path, **how)
    return path


STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0])}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_is_read(zipped: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    path = pth_file(tmp_path, STATE, _use_new_zipfile_serialization=zipped)
    read = pickled.read(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    zipped: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    sprung = tmp_path / "sprung"
    content = {**STATE, "trap": Trap(sprung)}
    path = pth_file(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert "holds more than tensors" in refusal(pickled.read, path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # to show that the trap is a trap
    assert sprung.exists()


def test_a_plain_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "holds more than tensors" in refusal(pickled.read, path)
    assert not (tmp_path / "sprung").exists()


NO_STATE_DICTS = {
    "tensor": STATE["bias"],
    "list": [STATE["bias"]],
    "number in it": {"state_dict": {**STATE, "epoch": 90}},
    "no known wrapper": {"weight": STATE, "epoch": 90},
    "number inside": {**STATE, "epoch": 90},
    "number as name": {0: STATE["bias"]},
    "none": None,
}


@pytest.mark.parametrize("content", NO_STATE_DICTS.values(), ids=NO_STATE_DICTS)
def test_content_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    sentence = refusal(pickled.read, pth_file(tmp_path, content))
    assert sentence.startswith("net.pth holds no state dict of tensors")
    assert sentence.endswith(", at the top level or under " + ", ".join(checkpoint.WRAPPERS))


# Checkpoints of training


@pytest.mark.parametrize("wrapper", checkpoint.WRAPPERS)
def test_the_weights_of_a_checkpoint_are_found(wrapper: str, tmp_path: Path) -> None:
    said: list[str] = []
    options = argparse.Namespace(lr=0.1, arch="googlenet")
    content = {"epoch": 90, "optimizer": {"state": {0: {}}}, "args": options, wrapper: STATE}
    read = pickled.read(pth_file(tmp_path, content), said.append)
    assert read.keys() == STATE.keys()
    assert said == [f"took the weights under '{wrapper}' of net.pth"]


def test_trained_weights_are_preferred_to_their_average(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    other = {name: value + 1 for name, value in STATE.items()}
    content = {"ema": other, "model_ema": other, "model": {"state_dict": STATE}}
    read = pickled.read(pth_file(tmp_path, content), said.append)
    assert torch.equal(read["bias"], STATE["bias"])
    (sentence,) = said
    assert sentence == (
        "took the weights under 'state_dict' in 'model' of net.pth, not those under 'ema',"
        " 'model_ema'"
    )


def test_recursive_checkpoint_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    assert "holds no state dict" in refusal(pickled.read, pth_file(tmp_path, content))


def test_plain_state_dict_is_read_without_messages(tmp_path: Path) -> None:
    said: list[str] = []
    read = pickled.read(pth_file(tmp_path, STATE), said.append)
    assert checkpoint.unprefixed(read, "net.pth", said.append).keys() == STATE.keys()
    assert said == []


@pytest.mark.parametrize(
    ("names", "wanted", "removed"),
    [
        (["module.a", "module.b.module.c"], ["a", "b.module.c"], "'module.'"),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"], "'_orig_mod.'"),
        (["_orig_mod.module.a"], ["a"], "'_orig_mod.', 'module.'"),
        (["module.module.a"], ["a"], "'module.'"),
        (["model.a", "model.b"], ["a", "b"], "'model.'"),
        (["n_averaged", "module.a"], ["a"], "'module.'"),
        (["a._orig_mod.b", "c"], ["a.b", "c"], "'_orig_mod.'"),
        (["a._checkpoint_wrapped_module._orig_mod.b"], ["a.b"],
         "'_orig_mod.', '_checkpoint_wrapped_module.'"),
        (["module.a", "b"], ["module.a", "b"], ""),
        (["modules.a", "my_orig_mod.b"], ["modules.a", "my_orig_mod.b"], ""),
        ([], [], ""),
    ],
)  # fmt: skip
def test_wrapper_prefixes_are_removed(names: list[str], wanted: list[str], removed: str) -> None:
    said: list[str] = []
    tensors = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    read = checkpoint.unprefixed(tensors, "net.pth", said.append)
    assert [*read] == wanted
    assert [*read.values()] == [tensors[name] for name in names if name != "n_averaged"]
    assert said == ([f"removed {removed} from the names in net.pth"] if removed else [])


def test_colliding_names_are_refused() -> None:
    tensors = {"a.b": STATE["bias"], "a._orig_mod.b": STATE["weight"]}
    with pytest.raises(BadWeights, match="two tensors of one name, without _orig_mod"):
        checkpoint.unprefixed(tensors, "net.pth")


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = pth_file(tmp_path, torch.nn.Linear(2, 2))
    assert "holds more than tensors" in refusal(pickled.read, path)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n" * 100, bytes(1000)], ids=["empty", "text", "zeros"]
)
def test_other_files_as_pth_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    assert "net.pth is not a PyTorch state dict" in refusal(pickled.read, path)


# safetensors


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def described(shape: list[int], *, dtype: str = "F32", end: int = 4) -> bytes:
    """A file of one tensor with four bytes of data."""
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    return with_header(json.dumps({"weight": tensor}).encode(), b"\0\0\x80\x3f")


def test_safetensors_round_trip(tmp_path: Path) -> None:
    turned = STATE["weight"].T  # not contiguous
    safetensor.write({**STATE, "turned": turned}, tmp_path / "a.safetensors", source="a test")
    read = safetensor.read(tmp_path / "a.safetensors")
    assert {name: value.tolist() for name, value in read.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [7],
        "turned": [[0, 3], [1, 4], [2, 5]],
    }


def test_safetensors_metadata_has_the_source(tmp_path: Path) -> None:
    safetensor.write(STATE, tmp_path / "a.safetensors", source="a test")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["source"] == "a test"


def test_the_order_of_tensors_does_not_change_the_file(tmp_path: Path) -> None:
    safetensor.write(STATE, tmp_path / "a.safetensors", source="a test")
    backwards = dict(reversed(STATE.items()))
    safetensor.write(backwards, tmp_path / "b.safetensors", source="a test")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tensors_that_share_memory_are_copied(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    safetensor.write({"a": tied, "b": tied, "c": tied[1:]}, tmp_path / "a.safetensors", source="")
    read = safetensor.read(tmp_path / "a.safetensors")
    assert [read[name].tolist() for name in "abc"] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3]]


NO_SAFETENSORS = {
    "empty": b"",
    "text": b"hello\n" * 100,
    "header of 8 EiB": (2**63).to_bytes(8, "little") + b"{}",
    "header of 1 TiB": (2**40).to_bytes(8, "little") + b"{}",
    "header is a list": with_header(b"[1, 2]"),
    "header is deep": with_header(b"{" * 100_000),
    "shape disagrees": described([2]),
    "data is short": described([1], end=5),
    "shape overflows": described([2**62, 2**62]),
    "negative": described([-1]),
    "unknown type": described([1], dtype="F5"),
    "shape over an int64": described([0, 2**63], end=0)[:-4],
}


@pytest.mark.parametrize("content", NO_SAFETENSORS.values(), ids=NO_SAFETENSORS)
def test_other_files_as_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    sentence = refusal(safetensor.read, path)
    assert sentence == "net.safetensors is not a safetensors file, or is cut short"


# Fuzzing


def saved(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


GOOD: dict[str, tuple[Reader, bytes]] = {
    "caffemodel": (caffemodel.read, legacy_layer((1, 1, 1, 2), [1, 2]) + layer([2], [1, 2])),
    "pth": (pickled.read, saved(zipped=True)),
    "legacy pth": (pickled.read, saved(zipped=False)),
    "safetensors": (safetensor.read, safetensors.torch.save(STATE)),
}


def read_or_refuse(read: Reader, content: bytes, path: Path) -> None:
    """A file is read in full or refused; anything else that is raised fails the test."""
    path.write_bytes(content)
    try:
        result = read(path)
    except BadWeights:
        return
    assert isinstance(result, dict)
    for value in result.values():
        assert all(
            isinstance(one, Tensor) for one in (value if isinstance(value, list) else [value])
        )


@pytest.mark.parametrize("kind", ["pth", "legacy pth", "safetensors"])
def test_a_file_that_is_cut_short_is_refused(kind: str, tmp_path: Path) -> None:
    read, content = GOOD[kind]
    path = tmp_path / "net"
    path.write_bytes(content)
    for left in range(len(content) - 1, -1, -7):
        os.truncate(path, left)
        assert re.match("net is not a .* is cut short", refusal(read, path))


@pytest.mark.parametrize("kind", GOOD)
@given(content=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_random_bytes_are_read_or_refused(
    kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_or_refuse(GOOD[kind][0], content, tmp_path_factory.getbasetemp() / "random")


@pytest.mark.parametrize("kind", GOOD)
@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=250, deadline=None)
def test_edited_files_are_read_or_refused(
    kind: str, edits: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    read, good = GOOD[kind]
    content = bytearray(good)
    for place, byte in edits:
        content[place % len(content)] = byte
    read_or_refuse(read, bytes(content), tmp_path_factory.getbasetemp() / "edited")
