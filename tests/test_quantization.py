"""int8 through the store: calibrated on pictures, judged, recorded, and served."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import IF_X86, ROOT, on_an_old_cpu
from PIL import Image

from service import forward, quantization, weights
from service.__main__ import main
from service.errors import BadWeights, ModelError, UnreadableImage
from service.quantization import Trial
from service.store import INT8, RECORD, WEIGHTS, Store

CPU = torch.device("cpu")
NAME = "bvlc_googlenet"


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[bytes]:
    """32 photos, of which each half judges the other."""
    paths = [*(shared / "photos/flickr").glob("*.jpg"), *(shared / "photos").glob("*.JPEG")]
    return [path.read_bytes() for path in sorted(paths)[:32]]


@pytest.fixture(scope="module")
def trial(real_store: Store, photos: list[bytes]) -> Trial:
    """The real weights, calibrated."""
    return quantization.attempt(weights.load(real_store, NAME), photos, max_pixels=10**8)


@pytest.fixture
def own_store(real_store: Store, tmp_path: Path) -> Store:
    """A store of one's own with the real weights."""
    folder = tmp_path / NAME
    folder.mkdir()
    for name in (WEIGHTS, RECORD):
        (folder / name).symlink_to(real_store.root / NAME / name)
    return Store(tmp_path, ROOT / "model_store")


@pytest.mark.slow
def test_int8_agrees_with_float32_on_photos_it_was_not_calibrated_on(trial: Trial) -> None:
    assert trial.pictures == 32
    assert trial.same >= 31
    assert trial.furthest < 0.1


def test_less_than_97_in_a_hundred_is_not_enough() -> None:
    assert Trial({}, 100, 97, 0.0).passed
    assert not Trial({}, 100, 96, 0.0).passed


@pytest.mark.parametrize("count", [0, 1])
def test_it_takes_two_pictures(real_store: Store, photos: list[bytes], count: int) -> None:
    with pytest.raises(ModelError, match="two pictures or more"):
        quantization.attempt(weights.load(real_store, NAME), photos[:count], max_pixels=10**8)


def test_a_broken_picture_is_an_error(real_store: Store, photos: list[bytes]) -> None:
    with pytest.raises(UnreadableImage):
        quantization.attempt(
            weights.load(real_store, NAME), [photos[0], photos[1][:500]], max_pixels=10**8
        )


@pytest.mark.slow
def test_what_was_recorded_is_for_these_weights_only(own_store: Store, trial: Trial) -> None:
    model = weights.load(own_store, NAME)
    assert model.largest is None
    own_store.quantize(model.name, model.sha256, trial.largest)
    assert weights.load(own_store, NAME).largest == pytest.approx(trial.largest)
    own_store.quantize(model.name, "0" * 64, trial.largest)
    assert weights.load(own_store, NAME).largest is None


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": "0", "largest": {"x": Infinity}}'])
def test_a_damaged_record_is_named(own_store: Store, content: str) -> None:
    path = own_store.root / NAME / INT8
    path.write_text(content)
    with pytest.raises(BadWeights, match=f"int8.json is damaged; quantize '{NAME}' again"):
        weights.load(own_store, NAME)


@pytest.mark.slow
def test_only_a_calibrated_model_may_be_int8(real_store: Store, trial: Trial) -> None:
    model = weights.load(real_store, NAME)
    with pytest.raises(ModelError, match="googlenet-service models quantize NAME --calibrate DIR"):
        forward.quickest([model], CPU, [torch.int8])
    calibrated = replace(model, largest=trial.largest)
    assert forward.quickest([calibrated], CPU, [torch.int8]) == torch.int8
    with pytest.raises(ModelError, match="int8 needs a CPU"):
        forward.quickest([calibrated, model], CPU, [torch.int8])
    assert forward.quickest([calibrated], CPU, [torch.float32, torch.int8]) == torch.int8


@pytest.fixture
def pictures(shared: Path, tmp_path: Path) -> Path:
    """A folder of photos, and of grey squares that teach nothing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, photo in enumerate(sorted((shared / "photos").glob("*.JPEG"))[:4]):
        Image.new("RGB", (256, 256), (104, 117, 123)).save(folder / f"{number}.png")
        (folder / f"{number}.jpg").symlink_to(photo)
    return folder


@pytest.mark.slow
def test_the_command_records_it_and_it_is_served(
    own_store: Store, pictures: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(own_store.root)]
    assert main(["models", "quantize", NAME, "--calibrate", str(pictures), *store]) == 0
    said = capsys.readouterr().out
    assert "has the first label of float32 on 8 of 8 pictures" in said
    assert f"{NAME} may be served with --precision int8" in said
    beagle = str(shared / "photos/flickr/beagle.jpg")
    options = ["--precision", "int8", "--views", "single", "--max-batch", "1", "--cores", "1"]
    assert main(["classify", "--model", NAME, *options, *store, beagle, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["predictions"][0]["label"] == "beagle"


@pytest.mark.slow
@IF_X86
def test_a_cpu_without_instructions_for_bfloat16_has_int8(
    own_store: Store, pictures: Path, shared: Path
) -> None:
    def run(*command: str) -> str:
        done = on_an_old_cpu(*command, "--store", str(own_store.root))
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("models", "quantize", NAME, "--calibrate", str(pictures))
    assert "has the first label of float32 on 8 of 8 pictures" in said
    beagle = str(shared / "photos/flickr/beagle.jpg")
    options = ["--precision", "int8", "--views", "single", "--max-batch", "1", "--cores", "1"]
    (answer,) = json.loads(run("classify", "--model", NAME, *options, beagle, "--json"))
    assert answer["predictions"][0]["label"] == "beagle"


@pytest.mark.slow
def test_what_does_not_agree_is_not_recorded(
    own_store: Store,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "ENOUGH", 1.01)
    store = ["--store", str(own_store.root)]
    assert main(["models", "quantize", NAME, "--calibrate", str(pictures), *store]) == 1
    assert "not near enough, and nothing was recorded" in capsys.readouterr().err
    assert weights.load(own_store, NAME).largest is None
