"""Manifests and labels: the committed ones, and the errors of invalid ones."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from torchvision.models import (
    AlexNet_Weights,
    DenseNet121_Weights,
    GoogLeNet_Weights,
    ResNet50_Weights,
    VGG16_Weights,
)
from torchvision.transforms import InterpolationMode

from service.engine import networks
from service.errors import ModelError
from service.imaging.crops import CROP, Resize
from service.models import manifest
from service.models.manifest import Calibration, Label, PairedStopping, Stopping
from service.models.stopping_rule import LEAD

STORE = ROOT / "model_store"
TORCHVISIONS = {
    "googlenet": GoogLeNet_Weights.IMAGENET1K_V1,
    "alexnet": AlexNet_Weights.IMAGENET1K_V1,
    "vgg16": VGG16_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V2,
    "densenet121": DenseNet121_Weights.IMAGENET1K_V1,
}
COMMITTED = ("bvlc_googlenet", *TORCHVISIONS)  # with ImageNet's classes
BUNDLED = "digits"


def test_manifest_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*: Is a directory"):
        manifest.read(tmp_path)


def test_committed_models() -> None:
    named = {path.parent.name for path in STORE.glob("*/model.toml")}
    assert named == {*COMMITTED, BUNDLED}


def test_written_manifest_is_read_again(tmp_path: Path) -> None:
    for name in (*COMMITTED, BUNDLED):
        described = manifest.read(STORE / name / "model.toml")
        (tmp_path / "model.toml").write_text(manifest.written(described), "utf-8")
        assert manifest.read(tmp_path / "model.toml") == described


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_manifest_is_complete(name: str) -> None:
    read = manifest.read(STORE / name / "model.toml")
    assert networks.architecture(read.architecture)
    assert read.classes == 1000
    assert read.source is not None
    assert read.accuracy
    assert all(0 < one.top1 < one.top5 < 100 for one in read.accuracy)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_manifest_equals_torchvision_s(name: str) -> None:
    theirs, ours = TORCHVISIONS[name], manifest.read(STORE / name / "model.toml")
    assert ours.source is not None
    assert str(ours.source.url) == theirs.url
    beginning = ours.source.digest.removeprefix("sha256:")
    assert theirs.url.endswith(f"-{beginning}.pth")
    assert ours.source.format == "pth"
    transform, preprocessing = theirs.transforms(), ours.preprocessing
    assert (transform.crop_size, transform.interpolation) == ([CROP], InterpolationMode.BILINEAR)
    assert preprocessing.resized == Resize("short", *transform.resize_size, "bilinear")
    (published,) = ours.accuracy
    accuracy = theirs.meta["_metrics"]["ImageNet-1K"]
    assert (published.top1, published.top5) == (accuracy["acc@1"], accuracy["acc@5"])
    assert preprocessing.channels == "RGB"
    if name != "googlenet":  # which undoes part of it: see `engine/test_networks.py`
        assert preprocessing.mean == pytest.approx([255 * mean for mean in transform.mean])
        assert preprocessing.scale == pytest.approx([1 / (255 * std) for std in transform.std])


def test_bvlc_source_is_the_published_one() -> None:
    source = manifest.read(STORE / "bvlc_googlenet" / "model.toml").source
    assert source is not None
    assert str(source.url) == "http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel"
    assert source.digest == "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204"


# Labels


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_labels_are_in_the_order_of_the_weights(name: str, shared: Path) -> None:
    described = manifest.read(STORE / name / "model.toml")
    labels = manifest.read_labels(STORE / name / described.labels, described.classes)
    assert [label.wnid for label in labels] == json.loads(
        (shared / "reference/wnids.json").read_text()
    )
    assert [label.name for label in labels] == GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"]


def labels_file(folder: Path, content: bytes) -> Path:
    path = folder / "labels.tsv"
    path.write_bytes(content)
    return path


def test_labels_may_lack_a_wordnet_id_and_have_windows_line_ends(tmp_path: Path) -> None:
    path = labels_file(tmp_path, "n02088364\tbeagle\r\n\tépagneul\r\n犬\r\n".encode())
    assert manifest.read_labels(path, 3) == (
        Label(name="beagle", wnid="n02088364"),
        Label(name="épagneul", wnid=None),
        Label(name="犬", wnid=None),
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_wrong_number_of_labels_is_refused(classes: int, tmp_path: Path) -> None:
    path = labels_file(tmp_path, b"a\nb\nc\n")
    with pytest.raises(ModelError) as caught:
        manifest.read_labels(path, classes)
    assert str(caught.value) == f"{path} has 3 labels and the model {classes} classes"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.tsv", "No such file or directory"),
        ("labels.tsv", "'utf-8' codec can't decode"),
        ("a\0b", ""),
    ],
)
def test_unreadable_labels(name: str, reason: str, tmp_path: Path) -> None:
    labels_file(tmp_path, "épagneul\n".encode("latin-1"))
    with pytest.raises(ModelError) as caught:
        manifest.read_labels(tmp_path / name, 1)
    assert str(caught.value).startswith(f"cannot read the labels {tmp_path / name}: {reason}")


# Invalid manifests


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A copy of a committed manifest."""
    return Path(shutil.copy(STORE / "bvlc_googlenet" / "model.toml", tmp_path / "model.toml"))


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        ("classes = 1000", "classes", "is not TOML: Expected '='"),
        ("classes = 1000", "classes = 1000\ncolour = 1", "colour: Extra inputs are not permitted"),
        ("side = 256", "side = 256\nedge = 1", "preprocessing.edge: Extra inputs"),
        ("classes = 1000", "", "classes: Field required"),
        ("classes = 1000", "classes = 'many'", "classes: Input should be a valid integer"),
        ("classes = 1000", "classes = 0", "classes: Input should be greater than or equal to 1"),
        ("classes = 1000", "classes = 100001", "classes: Input should be less than or equal"),
        ('"1"', "1", "version: Input should be a valid string"),
        ('"BGR"', '"GRB"', "preprocessing.channels: Input should be 'RGB' or 'BGR'"),
        ("123]", "256]", "preprocessing.mean.2: Input should be less than or equal to 255"),
        ("117, 123]", "117]", "preprocessing.mean.2: Field required"),
        ("side = 256", "side = 223", "preprocessing.side: Input should be greater than or equal"),
        ("side = 256", "side = 1025", "preprocessing.side: Input should be less than or equal"),
        ("side = 256", "side = 256\nscale = [1.0, nan, 1.0]", "preprocessing.scale.1: "),
        ("side = 256", "side = 256\nscale = [1.0, 1.0, inf]", "preprocessing.scale.2: "),
        ('"warp"', '"crop"', "preprocessing.resize: Input should be 'warp' or 'short'"),
        ('"caffemodel"', '"onnx"', "source.format: Input should be 'caffemodel', 'pth' or"),
        ("sha1:405f", "sha1:", "source.digest: String should match pattern"),
        ("sha1:405f", "md5:", "source.digest: String should match pattern"),
        ("http://dl", "file://dl", "source.url: URL scheme should be 'http' or 'https'"),
        ("top1 = 68.7", "top1 = true_", "is not TOML"),
        ("top1 = 68.7", "top1 = 'most'", "accuracy.0.top1: Input should be a valid number"),
    ],
)
def test_first_error_of_a_manifest(there: str, instead: str, said: str, described: Path) -> None:
    text = described.read_text()
    assert there in text
    described.write_text(text.replace(there, instead, 1))
    with pytest.raises(ModelError) as caught:
        manifest.read(described)
    sentence = str(caught.value)
    assert sentence.startswith(str(described))
    assert said in sentence
    assert "\n" not in sentence


def test_manifest_that_is_not_text(described: Path) -> None:
    described.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ModelError, match="is not TOML"):
        manifest.read(described)


def test_a_calibration_is_of_its_weights_only() -> None:
    stopping = Stopping(lead=0.3, agreement=0.99, differences=1, views=2.5)
    fitted = Calibration(
        temperature=2, sha256="ab" * 32, images=100, error=(0.2, 0.1), stopping=stopping
    )
    described = manifest.read(STORE / "googlenet/model.toml")
    calibrated = described.model_copy(update={"calibration": fitted})
    assert (calibrated.temperature("ab" * 32), calibrated.lead("ab" * 32)) == (2, 0.3)
    for others in (calibrated, described):
        assert (others.temperature("cd" * 32), others.lead("cd" * 32)) == (1, LEAD)
    temperature_only = fitted.model_copy(update={"stopping": None})
    calibrated = described.model_copy(update={"calibration": temperature_only})
    assert (calibrated.temperature("ab" * 32), calibrated.lead("ab" * 32)) == (2, LEAD)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = {"agreement": 0.99, "differences": 1, "views": 2.5}
    fitted = Calibration(
        temperature=2, sha256="ab" * 32, images=100, error=(0.2, 0.1),
        stopping=Stopping(lead=0.3, **kept), paired=PairedStopping(standard_errors=4, **kept),
    )  # fmt: skip
    text = (STORE / "googlenet/model.toml").read_text("utf-8")
    for calibration in (fitted, fitted.model_copy(update={"stopping": None})):
        text = manifest.calibrated(text, calibration)
        (tmp_path / "model.toml").write_text(text, "utf-8")
        assert manifest.read(tmp_path / "model.toml").calibration == calibration
