"""Quantization to int8: agreement with float32, storing and serving."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import IF_X86, ROOT, on_an_old_cpu
from PIL import Image

from service.__main__ import main
from service.engine import openvino_engine, quantization
from service.engine.openvino_executor import Compiled, Model
from service.engine.quantization import Pixels, Trial
from service.errors import ModelError, UnreadableImage, WrongOption
from service.models import converted_model
from service.models.store import FLOATS, INT8, RECORD, WEIGHTS, Store

NAME = "bvlc_googlenet"
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """All shared photos with a known class, cut as the model takes them."""

    pixels: Pixels
    wnids: Sequence[str]


@pytest.fixture(scope="module")
def model(real_store: Store) -> Model:
    """The real weights, converted."""
    return openvino_engine.read(real_store, NAME, "float32")


@pytest.fixture(scope="module")
def photos(shared: Path, model: Model) -> Photos:
    """The 100 photos; a photo's name begins with its class."""
    paths = sorted((shared / "photos").glob("*.JPEG"))
    files = [path.read_bytes() for path in paths]
    pixels = quantization.crop(model, files, max_pixels=10**8)
    return Photos(pixels, [path.name.partition("_")[0] for path in paths])


@pytest.fixture
def own_store(real_store: Store, tmp_path: Path) -> Store:
    """A store for one test with the real weights."""
    folder = tmp_path / NAME
    folder.mkdir()
    for name in (WEIGHTS, FLOATS):
        for file in (name, name + RECORD):
            (folder / file).symlink_to(real_store.root / NAME / file)
    return Store(tmp_path, ROOT / "model_store")


# The rule.


@pytest.mark.parametrize(
    ("same", "images", "passed"), [(97, 100, True), (96, 100, False), (2, 2, True), (1, 2, False)]
)
def test_passes_with_97_percent(same: int, images: int, passed: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert Trial(images, same, 0.0).passed == passed


@pytest.mark.parametrize("count", [0, 1])
def test_needs_two_images(count: int, model: Model, beagle: bytes) -> None:
    with pytest.raises(ModelError, match="calibration takes two images or more"):
        quantization.crop(model, [beagle] * count, max_pixels=10**8)


def test_a_broken_image_is_an_error(model: Model, beagle: bytes) -> None:
    with pytest.raises(UnreadableImage):
        quantization.crop(model, [beagle, beagle[:500]], max_pixels=10**8)


# On the shared photos.


def found(model: Model, precision: str, pixels: Pixels) -> Probabilities:
    """Give the probabilities of some images."""
    compiled = Compiled(model, precision, 1)
    batches = [pixels[start : start + 20] for start in range(0, len(pixels), 20)]
    return np.concatenate([compiled.probabilities(batch).copy() for batch in batches])


def right(probabilities: Probabilities, model: Model, photos: Photos, among: int) -> int:
    """Count the photos whose class is among so many labels."""
    best = probabilities.argsort(1)[:, ::-1][:, :among]
    wnids = [label.wnid for label in model.labels]
    return sum(
        wnid in [wnids[number] for number in row]
        for wnid, row in zip(photos.wnids, best, strict=True)
    )


@pytest.mark.slow
def test_agrees_with_float32_on_other_photos(model: Model, photos: Photos) -> None:
    trial = quantization.attempt(model, photos.pixels, 1)
    assert trial.images == 100
    assert trial.same >= 97
    assert trial.passed
    assert 0 < trial.furthest < 0.3


@pytest.mark.slow
def test_accuracy_equals_float32_within_a_photo(
    own_store: Store, model: Model, photos: Photos
) -> None:
    quantization.publish(own_store, model, photos.pixels[::2])
    quantized = openvino_engine.read(own_store, NAME, "int8")
    assert len(quantized.served.constants) < 0.5 * len(quantized.floats.constants)
    exact, rounded = found(model, "float32", photos.pixels), found(quantized, "int8", photos.pixels)
    assert not np.array_equal(exact, rounded)
    for among in (1, 5):
        assert abs(right(rounded, model, photos, among) - right(exact, model, photos, among)) <= 1


@pytest.mark.slow
def test_quantized_file_is_of_its_weights_only(
    own_store: Store, model: Model, photos: Photos
) -> None:
    quantization.publish(own_store, model, photos.pixels[:4])
    digest = own_store.verify(NAME)
    assert converted_model.read(own_store, NAME, digest, INT8).description.weights == digest
    path = own_store.root / NAME / INT8
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"is damaged.*: googlenet-service models quantize {NAME}"):
        openvino_engine.read(own_store, NAME, "int8")


# The command.


@pytest.fixture
def good(shared: Path, tmp_path: Path) -> Path:
    """A folder of photos."""
    folder = tmp_path / "good"
    folder.mkdir()
    for photo in sorted((shared / "photos").glob("*.JPEG"))[::8]:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture
def bad(shared: Path, tmp_path: Path) -> Path:
    """A folder in which every other image is black, so half are useless for calibration."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for number, photo in enumerate(sorted((shared / "photos").glob("*.JPEG"))[::12]):
        shutil.copy(photo, folder / f"{number}a.jpg")
        Image.new("RGB", (256, 256)).save(folder / f"{number}b.png")
    return folder


OPTIONS = (
    "--precision",
    "int8",
    "--views",
    "single",
    "--max-batch",
    "1",
    "--cpu-threads",
    "1",
    "--json",
)


@pytest.mark.slow
def test_command_stores_a_servable_model(
    own_store: Store, good: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--model-store", str(own_store.root)]
    assert main(["models", "quantize", NAME, "--calibrate", str(good), *store]) == 0
    said = capsys.readouterr().out
    assert "int8 has the first label of float32 on 13 of 13 images" in said
    assert f"{NAME} can be served with --precision int8" in said
    beagle = str(shared / "photos/flickr/beagle.jpg")
    assert main(["classify", "--model", NAME, *OPTIONS, *store, beagle]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["predictions"][0]["label"] == "beagle"


@pytest.mark.slow
def test_bad_calibration_is_refused(
    own_store: Store, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--model-store", str(own_store.root)]
    before = {path.name for path in (own_store.root / NAME).iterdir()}
    assert main(["models", "quantize", NAME, "--calibrate", str(bad), *store]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "not close enough, not saved" in said.err
    assert {path.name for path in (own_store.root / NAME).iterdir()} - before <= {"weights.lock"}
    assert not own_store.has(NAME, INT8)


@pytest.mark.slow
@IF_X86
def test_int8_without_bfloat16_instructions(
    own_store: Store, model: Model, photos: Photos, shared: Path
) -> None:
    quantization.publish(own_store, model, photos.pixels[::5])
    beagle = str(shared / "photos/flickr/beagle.jpg")
    store = ("--model-store", str(own_store.root))
    done = on_an_old_cpu("classify", "--model", NAME, *OPTIONS, *store, beagle)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert answer["predictions"][0]["label"] == "beagle"


def test_missing_nncf_error(model: Model, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(WrongOption, match=r"pip install 'googlenet-service\[quantize\]'"):
        quantization.quantize(model, photos.pixels[:2])
