"""The store: import, download, checks, and recovery from crashes and damage."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from test_download import Website, serving, silent
from test_formats import Trap, field, varint
from torch import Tensor

from service.__main__ import main
from service.engine import weights
from service.engine.networks import ARCHITECTURES
from service.errors import BadWeights, MissingWeights, ModelError, ServiceError, Unreachable
from service.models import store as stores
from service.models.download import CHUNK
from service.models.manifest import Calibration
from service.models.store import RECORD, WEIGHTS, Store

State = dict[str, Tensor]

WIDTH = 0.3  # small to read and write, and yet over two chunks of a download
NAMES = ["alexnet", "bvlc_googlenet", "densenet121", "digits", "googlenet", "resnet50", "vgg16"]

MANIFEST = """
architecture = "{architecture}"
width = {width}
version = "1"
description = "a test's"
licence = "none"
classes = 3
labels = "labels.tsv"

[preprocessing]
channels = "RGB"
mean = [104, 117, 123]
resize = "warp"
side = 256
"""
SOURCE = """
[source]
url = "{url}"
digest = "sha256:{digest}"
format = "{format}"
"""


def describe(
    root: Path, more: str = "", *, architecture: str = "googlenet", width: float = WIDTH
) -> Store:
    """A store at `root` with the manifest of a model, `small`, of three classes."""
    width = width if architecture == "googlenet" else 1
    folder = root / "small"
    folder.mkdir(parents=True, exist_ok=True)
    described = MANIFEST.format(architecture=architecture, width=width)
    folder.joinpath("model.toml").write_text(described + more)
    folder.joinpath("labels.tsv").write_text("red\ngreen\nblue\n")
    return Store(root, root / "nothing")


def sourced(root: Path, url: str, file: Path) -> Store:
    """The same, with a URL for its weights."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return describe(root, SOURCE.format(url=url, digest=digest, format=file.suffix[1:]))


def random_state(architecture: str = "googlenet", seed: int = 0) -> State:
    """Weights for three classes."""
    with torch.device("meta"):
        width = WIDTH if architecture == "googlenet" else 1
        state = ARCHITECTURES[architecture].build(3, width).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(v.shape, generator=generator) * 0.01 for name, v in state.items()}


def as_caffe(state: State, *, leave_out: str = "") -> bytes:
    """Weights in Caffe's format, encoded by hand, perhaps without a layer."""

    def blob(values: Tensor) -> bytes:
        shape = b"".join(varint(side) for side in values.shape)
        return field(7, field(1, shape)) + field(5, values.numpy().astype("<f4").tobytes())

    layers = ARCHITECTURES["googlenet"].caffe_layers()
    return b"".join(
        field(
            100,
            field(1, layer.encode())
            + field(7, blob(state[f"{module}.weight"]))
            + field(7, blob(state[f"{module}.bias"])),
        )
        for layer, module in layers.items()
        if layer != leave_out
    )


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(
    kind: type[ServiceError], call: Callable[..., object], *arguments: object, **named: object
) -> str:
    """Return the message of the error that is raised."""
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: small tensors are slower on several of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def state() -> State:
    """The small model's weights."""
    return random_state()


@pytest.fixture(scope="module")
def files(state: State, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The small model's weights as a file, by the file's ending."""
    folder = tmp_path_factory.mktemp("files")
    made = {end: folder / f"small.{end}" for end in ("caffemodel", "pth", "pt", "safetensors")}
    made["caffemodel"].write_bytes(as_caffe(state))
    torch.save(state, made["pth"])
    torch.save(state, made["pt"])
    safetensors.torch.save_file(state, made["safetensors"])
    return made


@pytest.fixture(scope="module")
def filled(files: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the small model's weights; tests leave it as it is."""
    store = describe(tmp_path_factory.mktemp("filled"))
    weights.install(store, "small", files["pth"], source="a test")
    return store


@pytest.fixture
def copied(filled: Store, tmp_path: Path) -> Store:
    """A copy of that store for one test."""
    shutil.copytree(filled.root, tmp_path / "copied")
    return Store(tmp_path / "copied", tmp_path / "nothing")


# Importing


@pytest.mark.parametrize("ending", ["caffemodel", "pth", "pt", "safetensors"])
def test_every_format_is_imported_to_the_same_weights(
    ending: str, files: Mapping[str, Path], state: State, tmp_path: Path
) -> None:
    store = describe(tmp_path)
    digest = weights.install(store, "small", files[ending], source=files[ending].name)
    assert store.has("small")
    model = weights.load(store, "small")
    assert model.sha256 == digest == store.verify("small")
    assert (model.name, model.manifest.version) == ("small", "1")
    assert [label.name for label in model.labels] == ["red", "green", "blue"]
    assert same(model.state, state)


def test_repeated_imports_have_the_same_digest(
    filled: Store, files: Mapping[str, Path], tmp_path: Path
) -> None:
    digest = weights.install(describe(tmp_path), "small", files["pth"], source="a test")
    assert digest == filled.verify("small")


def test_weights_have_the_usual_file_mode(filled: Store) -> None:
    """0644 with the usual umask, so that a service of another user can read them."""
    other = filled.root / "small" / "model.toml"
    for name in (WEIGHTS, WEIGHTS + RECORD):
        assert (filled.root / "small" / name).stat().st_mode == other.stat().st_mode


def test_the_record_is_one_that_sha256sum_reads(filled: Store) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("sha256sum is missing")
    command = [tool, "--check", "--strict", WEIGHTS + RECORD]
    checked = subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=filled.root / "small", capture_output=True, text=True, check=True
    )
    assert checked.stdout == f"{WEIGHTS}: OK\n"


@pytest.mark.parametrize("damaged", [False, True])
def test_importing_replaces_the_weights(*, damaged: bool, copied: Store, tmp_path: Path) -> None:
    if damaged:
        (copied.root / "small" / WEIGHTS).write_bytes(b"damaged")
    fresh = random_state(seed=1)
    torch.save(fresh, tmp_path / "fresh.pth")
    digest = weights.install(copied, "small", tmp_path / "fresh.pth", source="a test")
    assert copied.verify("small") == digest
    assert same(weights.load(copied, "small").state, fresh)
    record = (copied.root / "small" / (WEIGHTS + RECORD)).read_text()
    assert record == f"{digest}  {WEIGHTS}\n"


def test_a_store_can_import_its_own_file(copied: Store, state: State) -> None:
    weights.install(copied, "small", copied.root / "small" / WEIGHTS, source="itself")
    assert same(weights.load(copied, "small").state, state)


ENDINGS = ".caffemodel, .pth, .pt, .ckpt, .bin, .tar, .safetensors"


def with_prefix(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("ending", ["pth.tar", "safetensors"])
def test_checkpoint_import_reports_its_changes(
    ending: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = describe(tmp_path), tmp_path / f"best.{ending}"
    wrapped = with_prefix("module._orig_mod.", state)
    if ending == "safetensors":
        safetensors.torch.save_file(wrapped, file)
    else:
        torch.save({"epoch": 90, "optimizer": {"state": {}}, "state_dict": wrapped}, file)
    assert main(["models", "import", "small", str(file), "--model-store", str(store.root)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    undone = [f"removed '_orig_mod.', 'module.' from the names in best.{ending}"]
    taken = [f"took the weights under 'state_dict' of best.{ending}"] * (ending != "safetensors")
    assert lines == taken + undone
    assert last.startswith("small is in ")
    assert same(weights.load(store, "small").state, state)


def cast(state: State, kind: torch.dtype) -> State:
    return {name: value.to(kind) for name, value in state.items()}


def tied(state: State) -> State:
    """Two of its tensors share memory."""
    return {**state, "reduce2.bias": state["conv1.bias"]}


Edit = Callable[[State], State]


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        (lambda state: cast(state, torch.float64), dict),
        (
            lambda state: cast(state, torch.bfloat16),
            lambda state: cast(cast(state, torch.bfloat16), torch.float32),
        ),
        (tied, tied),
        (lambda state: {**state, "aux_4a.conv.bias": torch.zeros(128)}, dict),  # for training only
    ],
    ids=["float64", "bfloat16", "shared memory", "auxiliary classifier"],
)
def test_weights_are_kept_as_float32_that_can_be_served(
    published: Edit, kept: Edit, state: State, tmp_path: Path
) -> None:
    store = describe(tmp_path)
    torch.save(published(state), tmp_path / "other.pth")
    weights.install(store, "small", tmp_path / "other.pth", source="a test")
    assert same(weights.load(store, "small").state, kept(state))


@pytest.mark.parametrize("counted", [True, False])
def test_batch_norm_counters_are_optional(
    counted: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    store = describe(tmp_path, architecture="torchvision_googlenet")
    state = random_state("torchvision_googlenet")
    plain = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(state if counted else plain, tmp_path / "other.pth")
    weights.install(store, "small", tmp_path / "other.pth", source="a test")
    model = weights.load(store, "small")
    assert same(model.state, plain)
    assert plain.keys() < model.network().state_dict().keys()


# Files that are refused


def changed(name: str, value: object) -> Callable[[State], dict[str, object]]:
    return lambda state: {**state, name: value}


def without(name: str) -> Callable[[State], dict[str, object]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


MISFITS: dict[str, tuple[Callable[[State], dict[str, object]], str]] = {
    "another network": (
        lambda _: {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
        "bad.pth is of another architecture: it has 'layer1.0.conv1.weight'",
    ),
    "nothing": (lambda _: {}, "bad.pth lacks 'conv1.weight', or is of another architecture"),
    "a missing bias": (without("linear.bias"), "bad.pth lacks 'linear.bias', or is of another"),
    "other classes": (
        changed("linear.bias", torch.zeros(1000)),
        "'linear.bias' of bad.pth is [1000], not [3]",
    ),
    "turned": (
        changed("linear.weight", torch.zeros(306, 3)),
        "'linear.weight' of bad.pth is [306, 3], not [3, 306]",
    ),
    "not a number": (
        changed("linear.bias", torch.tensor([0, float("nan"), 0])),
        "'linear.bias' of bad.pth holds numbers that are not finite",
    ),
    "infinite": (
        changed("linear.bias", torch.tensor([0, 0, float("-inf")])),
        "'linear.bias' of bad.pth holds numbers that are not finite",
    ),
    "too large for float32": (
        changed("linear.bias", torch.full((3,), 1e300, dtype=torch.float64)),
        "'linear.bias' of bad.pth holds numbers that are not finite",
    ),
    "float8": (
        changed("linear.bias", torch.full((3,), float("nan")).to(torch.float8_e4m3fn)),
        "'linear.bias' of bad.pth holds numbers that are not finite",
    ),
    "complex": (changed("linear.bias", torch.zeros(3, dtype=torch.complex64)), "'linear.bias' of"),
    "no data": (changed("linear.bias", torch.zeros(3, device="meta")), "'linear.bias' of"),
    "sparse": (changed("linear.bias", torch.zeros(3).to_sparse()), "'linear.bias' of bad.pth"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch's own
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_invalid_weights_are_refused_and_the_old_ones_stay(
    misfit: str, copied: Store, state: State, tmp_path: Path
) -> None:
    edit, said = MISFITS[misfit]
    torch.save(edit(state), tmp_path / "bad.pth")
    before = {path: path.stat().st_mtime_ns for path in (copied.root / "small").iterdir()}
    sentence = refusal(
        BadWeights, weights.install, copied, "small", tmp_path / "bad.pth", source="a test"
    )
    assert sentence.startswith(said)
    assert "\n" not in sentence
    assert {path: path.stat().st_mtime_ns for path in (copied.root / "small").iterdir()} == before


def test_bad_file_makes_no_folder(tmp_path: Path) -> None:
    described = describe(tmp_path / "builtin")
    store = Store(tmp_path / "root", described.root)
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    refusal(BadWeights, weights.install, store, "small", tmp_path / "bad.safetensors", source="")
    assert not store.root.exists()


def test_a_caffe_model_that_lacks_a_layer_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(as_caffe(state, leave_out="inception_5b/pool_proj"))
    sentence = refusal(BadWeights, weights.install, describe(tmp_path), "small", path, source="")
    assert sentence.startswith("bad.caffemodel lacks 'inception.5b.pool_proj.weight'")


def test_a_caffe_model_of_other_classes_is_refused(shared: Path, tmp_path: Path) -> None:
    published = shared / "weights/bvlc_googlenet.caffemodel"
    store = describe(tmp_path, width=1)
    sentence = refusal(BadWeights, weights.install, store, "small", published, source="")
    assert sentence == (
        "layer 'loss3/classifier' of bvlc_googlenet.caffemodel is [1, 1, 1000, 1024], not [3, 1024]"
    )


def test_caffe_model_is_refused_for_torchvision_s_network(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    store = describe(tmp_path, architecture="torchvision_googlenet")
    sentence = refusal(BadWeights, weights.install, store, "small", files["caffemodel"], source="")
    assert sentence.startswith("small.caffemodel lacks 'conv1.conv.weight'")


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "weights.PTH"])
def test_a_file_with_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    sentence = refusal(
        BadWeights, weights.install, describe(tmp_path), "small", tmp_path / name, source=""
    )
    assert sentence == f"{name} has none of the endings {ENDINGS}"


def test_missing_file_is_named(tmp_path: Path) -> None:
    store = describe(tmp_path)
    for path in (tmp_path / "no.pth", tmp_path):
        sentence = refusal(ModelError, weights.install, store, "small", path, source="")
        assert sentence == f"there is no file {path}"


def test_unwritable_folder_is_named(files: Mapping[str, Path], tmp_path: Path) -> None:
    described = describe(tmp_path / "builtin")
    (tmp_path / "root").write_text("a file where the store should be")
    store = Store(tmp_path / "root", described.root)
    assert not store.has("small")
    sentence = refusal(ModelError, weights.install, store, "small", files["pth"], source="")
    assert sentence == f"cannot write to {tmp_path / 'root' / 'small'}: Not a directory"


def test_failed_write_is_reported(copied: Store, files: Mapping[str, Path]) -> None:
    """As with a full disk; the old weights stay."""
    (copied.root / "small" / "weights.part").mkdir()
    digest = copied.verify("small")
    sentence = refusal(ModelError, weights.install, copied, "small", files["pth"], source="")
    assert sentence.startswith("cannot write")
    assert "\n" not in sentence
    assert copied.verify("small") == digest


# Names and places


@pytest.mark.parametrize(
    "name", ["large", "", ".", "..", "../small", "./small", "small/", "a/b", "sm\0all", "x" * 300]
)
def test_unknown_name_is_refused(name: str, filled: Store) -> None:
    for call in (
        filled.manifest,
        filled.labels,
        lambda n: weights.load(filled, n),
        lambda n: weights.fetch(filled, n, silent),
    ):
        sentence = refusal(ModelError, call, name)
        assert sentence == f"there is no model {name!r}; there are small"
    sentence = refusal(ModelError, weights.install, filled, name, filled.root, source="")
    assert sentence == f"there is no model {name!r}; there are small"


def test_an_absolute_path_is_no_name(filled: Store) -> None:
    name = str(filled.root / "small")
    assert "there is no model" in refusal(ModelError, weights.load, filled, name)


def test_every_model_that_is_listed_can_be_described(tmp_path: Path) -> None:
    store = describe(tmp_path)
    shutil.copytree(tmp_path / "small", tmp_path / "small-2")
    assert [store.manifest(name).classes for name in store.names()] == [3] * len(store.names())


def test_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "root", tmp_path / "builtin")
    assert store.names() == []
    assert refusal(ModelError, weights.load, store, "small").startswith("there is no model 'small'")


def test_stored_manifest_overrides_the_builtin(tmp_path: Path) -> None:
    describe(tmp_path / "root", architecture="torchvision_googlenet")
    describe(tmp_path / "builtin", architecture="googlenet")
    both = Store(tmp_path / "root", tmp_path / "builtin")
    assert both.names() == ["small"]
    assert both.manifest("small").architecture == "torchvision_googlenet"
    assert Store(tmp_path, tmp_path / "builtin").manifest("small").architecture == "googlenet"


def test_an_unknown_architecture_is_named(files: Mapping[str, Path], tmp_path: Path) -> None:
    store = describe(tmp_path, architecture="resnet5")
    sentence = refusal(ModelError, weights.install, store, "small", files["pth"], source="")
    assert sentence == (
        "there is no architecture 'resnet5'; there are googlenet, torchvision_googlenet, lenet5, "
        "zfnet, xception, se_resnet50 and torchvision's networks for classification; do you mean "
        "'resnet50'?"
    )


def test_default_store_of_a_checkout(tmp_path: Path) -> None:
    assert stores.locate(None) == Store(ROOT / "model_store", ROOT / "model_store")
    assert stores.locate(tmp_path) == Store(tmp_path, ROOT / "model_store")
    assert stores.locate(tmp_path).names() == NAMES


LOCATE = """
from service.models import store
found = store.locate(None)
print(found.root, found.builtin, *found.names(), sep="\\n")
"""


def test_default_store_of_an_installed_package(
    tmp_path: Path,
) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "service", site / "service")
    for manifest in (ROOT / "model_store").glob("*/model.toml"):
        folder = site / "service/model_store" / manifest.parent.name
        folder.mkdir(parents=True)
        shutil.copy(manifest, folder)
    environment = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with running(LOCATE, cwd=tmp_path, environment=environment) as process:
        root, builtin, *names = process.stdout.read().split()
    assert root == str(tmp_path / "cache" / "googlenet-service" / "model_store")
    assert builtin == str(site / "service/model_store")
    assert names == NAMES


# The bundled model


def test_bundled_model_is_in_every_store(tmp_path: Path) -> None:
    store = stores.locate(tmp_path)
    assert store.has("digits")
    assert weights.load(store, "digits").sha256 == store.verify("digits")
    assert not [*tmp_path.iterdir()]


def test_stored_weights_override_the_bundled_model(tmp_path: Path) -> None:
    store = stores.locate(tmp_path)
    bundled = weights.load(store, "digits")
    found = Calibration(temperature=2, sha256=bundled.sha256, images=100, error=(0.5, 0.25))
    with store.locked("digits"):
        store.calibrate("digits", found)
    state = {name: value + 1 for name, value in bundled.state.items()}
    with store.locked("digits"):
        digest = weights.save(store, "digits", state, source="a test")
    own = weights.load(store, "digits")
    assert own.sha256 == digest != bundled.sha256
    assert own.manifest.calibration == found
    assert own.temperature == 1  # for it was fitted for the others


def test_calibration_of_a_builtin_model_is_written_to_the_store(tmp_path: Path) -> None:
    store = stores.locate(tmp_path)
    before = store.manifest("digits")
    found = Calibration(temperature=2, sha256="0" * 64, images=9, error=(0.5, 0.25))
    with store.locked("digits"):
        store.calibrate("digits", found)
    assert store.manifest("digits") == before.model_copy(update={"calibration": found})
    assert stores.locate(None).manifest("digits") == before
    assert len(store.labels("digits")) == 10  # which are found where they were
    assert weights.load(store, "digits").manifest.calibration == found


# Damage


def test_missing_weights_error_has_instructions(tmp_path: Path) -> None:
    store = describe(tmp_path)
    nowhere = "wherever the model was made"
    for call in (store.verify, lambda name: weights.load(store, name)):
        assert refusal(MissingWeights, call, "small").splitlines() == [
            f"The weights of 'small' are not in {tmp_path}.",
            "With a network:     googlenet-service models fetch small",
            f"Without, bring the file from {nowhere}:  googlenet-service models import small FILE",
        ]


@pytest.mark.parametrize("place", [0, 8, 1000, -1])
def test_one_damaged_byte_is_noticed(place: int, copied: Store) -> None:
    path = copied.root / "small" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    for call in (
        copied.verify,
        lambda name: weights.load(copied, name),
        lambda name: weights.fetch(copied, name, silent),
    ):
        with pytest.raises(ModelError):
            call("small")
    sentence = refusal(BadWeights, weights.load, copied, "small")
    assert sentence == f"{path} was changed or damaged: its SHA-256 is not the recorded one"


@pytest.mark.parametrize(
    "record", [None, b"", b"\n \n", b"\xff\xfe", b"0" * 64 + b"  " + WEIGHTS.encode()]
)
def test_a_missing_or_damaged_record_is_noticed(record: bytes | None, copied: Store) -> None:
    path = copied.root / "small" / (WEIGHTS + RECORD)
    path.unlink()
    if record is not None:
        path.write_bytes(record)
    assert "changed or damaged" in refusal(BadWeights, weights.load, copied, "small")


def recorded(store: Store, content: Path | bytes) -> None:
    """Replace the weights, and record the digest of the new ones."""
    content = content if isinstance(content, bytes) else content.read_bytes()
    (store.root / "small" / WEIGHTS).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (store.root / "small" / (WEIGHTS + RECORD)).write_text(f"{digest}  {WEIGHTS}\n")


def test_foreign_weights_are_refused_even_if_they_are_recorded(copied: Store) -> None:
    recorded(copied, safetensors.torch.save({"fc.bias": torch.zeros(3)}))
    sentence = refusal(BadWeights, weights.load, copied, "small")
    assert sentence == f"{WEIGHTS} is of another architecture: it has 'fc.bias'"


# Fetching


@pytest.mark.parametrize("ending", ["caffemodel", "pth", "safetensors"])
def test_weights_are_fetched_once_and_have_their_source(
    ending: str, files: Mapping[str, Path], state: State, tmp_path: Path
) -> None:
    reported: list[tuple[int, int | None]] = []
    with serving(site := Website(files[ending].read_bytes())) as url:
        store = sourced(tmp_path, url, files[ending])
        digest = weights.fetch(store, "small", lambda *now: reported.append(now))
        assert weights.fetch(store, "small", silent) == digest
    assert site.ranges == [None]
    assert reported[-1] == (len(site.content), len(site.content))
    assert same(weights.load(store, "small").state, state)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names - {"weights.lock"} == {"model.toml", "labels.tsv", WEIGHTS, WEIGHTS + RECORD}
    with safetensors.safe_open(tmp_path / "small" / WEIGHTS, "pt") as file:
        assert file.metadata()["source"] == url


def test_error_without_a_network_has_instructions(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    with serving(lambda _: None) as url:
        pass
    store = sourced(tmp_path, url, files["pth"])
    sentence, *advice = refusal(Unreachable, weights.fetch, store, "small", silent).splitlines()
    assert sentence.startswith(f"cannot download {url}: ")
    assert advice == [
        f"The weights of 'small' are not in {tmp_path}.",
        "With a network:     googlenet-service models fetch small",
        f"Without, bring the file from {url}:  googlenet-service models import small FILE",
    ]
    assert not store.has("small")


def test_file_with_another_digest_is_not_installed(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    with serving(Website(files["pt"].read_bytes() + b"!")) as url:
        store = sourced(tmp_path, url, files["pth"])
        assert "it was deleted" in refusal(ModelError, weights.fetch, store, "small", silent)
    assert not store.has("small")
    assert not (tmp_path / "small" / "download.pth").exists()


def test_a_model_without_a_source_that_is_there_need_not_be_fetched(tmp_path: Path) -> None:
    bundled = Store(tmp_path, ROOT / "model_store")
    assert weights.fetch(bundled, "digits", silent) == bundled.verify("digits")
    assert not [*tmp_path.iterdir()]


def test_a_model_without_a_source_cannot_be_fetched(tmp_path: Path) -> None:
    sentence = refusal(ModelError, weights.fetch, describe(tmp_path), "small", silent)
    assert sentence == "the manifest of 'small' names no source; import its weights"


# Concurrent and killed processes

FETCH = """
import sys
from pathlib import Path
from service.engine import weights
from service.models.store import Store
root = Path(sys.argv[1])
weights.fetch(Store(root, root), "small", lambda have, total: print(have, flush=True))
"""

FETCH_TWICE = """
import os, sys
from pathlib import Path
from service.engine import weights
from service.models.store import Store
root = Path(sys.argv[1])
child = os.fork()
sys.stdout.write("fetching" + chr(10))
sys.stdout.flush()
print(weights.fetch(Store(root, root), "small", lambda have, total: None), flush=True)
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# In three children, dies before the first, second and third time a file is renamed.
IMPORT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from service.engine import weights
from service.models.store import Store
for deaths in range(3):
    child = os.fork()
    if child == 0:
        renames = []
        def count(event, arguments):
            if event == "os.rename":
                renames.append(arguments)
                if len(renames) > deaths:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        root = Path(sys.argv[2 + deaths])
        weights.install(Store(root, root), "small", Path(sys.argv[1]), source="a test")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@contextmanager
def running(
    script: str,
    *arguments: Path,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator["subprocess.Popen[str]"]:
    """Run a script in a process, which is killed at the end."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    whole = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(  # noqa: S603 - our own script
        command, cwd=cwd, env=whole, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_concurrent_fetches_are_serialized(files: Mapping[str, Path], tmp_path: Path) -> None:
    site = Website(files["pth"].read_bytes())
    both_fetch = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        both_fetch.wait(60)
        site(request)

    with serving(answer) as url:
        store = sourced(tmp_path, url, files["pth"])
        with running(FETCH_TWICE, tmp_path) as process:
            assert [process.stdout.readline() for _ in range(2)] == ["fetching\n"] * 2
            both_fetch.set()
            *digests, status = process.stdout.read().split()
    assert status == "0"
    assert digests == [store.verify("small")] * 2
    assert site.ranges == [None]


def test_killed_fetch_leaves_a_resumable_part(
    files: Mapping[str, Path], state: State, tmp_path: Path
) -> None:
    content = files["pth"].read_bytes()
    killed = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: 2 * CHUNK])
        killed.wait(60)

    with serving(stall) as url:
        store = sourced(tmp_path, url, files["pth"])
        with running(FETCH, tmp_path) as process:
            reported = [process.stdout.readline() for _ in range(2)]
            process.kill()
        killed.set()
    assert reported == [f"{CHUNK}\n", f"{2 * CHUNK}\n"]
    assert process.returncode == -signal.SIGKILL
    assert not store.has("small")
    have = (tmp_path / "small" / "download.pth").stat().st_size
    assert CHUNK <= have <= 2 * CHUNK
    with serving(site := Website(content)) as url:
        store = sourced(tmp_path, url, files["pth"])
        weights.fetch(store, "small", silent)
    assert site.ranges == [f"bytes={have}-"]
    assert same(weights.load(store, "small").state, state)


@pytest.mark.slow
def test_killed_import_leaves_a_servable_model(filled: Store, state: State, tmp_path: Path) -> None:
    """At each of the three steps the weights that are visible match a recorded digest."""
    old, fresh = filled.verify("small"), random_state(seed=1)
    torch.save(fresh, tmp_path / "fresh.pth")
    roots = [shutil.copytree(filled.root, tmp_path / str(deaths)) for deaths in range(3)]
    with running(IMPORT_AND_DIE, tmp_path / "fresh.pth", *roots) as process:
        assert process.stdout.read().split() == [str(-signal.SIGKILL)] * 3

    left = [Store(root, tmp_path / "nothing") for root in roots]
    recorded = [
        len((root / "small" / (WEIGHTS + RECORD)).read_text().splitlines()) for root in roots
    ]
    assert recorded == [1, 2, 2]
    assert [store.verify("small") == old for store in left] == [True, True, False]
    served = [weights.load(store, "small").state for store in left]
    assert [same(one, state) for one in served] == [True, True, False]
    assert same(served[2], fresh)
    digest = weights.install(left[1], "small", tmp_path / "fresh.pth", source="a test")
    assert (roots[1] / "small" / (WEIGHTS + RECORD)).read_text() == f"{digest}  {WEIGHTS}\n"
    assert left[1].verify("small") == digest


# In a child for each, dies before the n-th time that a file is opened, renamed or removed, until
# one is left that does not die; says which they were.
FETCH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from service.engine import weights
from service.models.store import Store
whole = Path(sys.argv[1]) / "whole"
weights.fetch(Store(whole, whole), "small", lambda have, total: None)  # imports once what it needs
for steps in range(100):
    child = os.fork()
    root = Path(sys.argv[1]) / str(steps)
    if child == 0:
        done = []
        def count(event, arguments):
            if event in ("open", "os.rename", "os.remove") and str(root) in str(arguments[0]):
                done.append(event)
                if len(done) > steps:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        weights.fetch(Store(root, root), "small", lambda have, total: None)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(steps)
"""


@pytest.mark.slow
def test_fetch_killed_at_any_step_leaves_no_partial_model(
    files: Mapping[str, Path], state: State, tmp_path: Path
) -> None:
    with serving(Website(files["pth"].read_bytes())) as url:
        for name in ["whole", *range(100)]:
            sourced(tmp_path / str(name), url, files["pth"])
        with running(FETCH_AND_DIE, tmp_path) as process:
            deaths = int(process.stdout.read())
        left = [Store(tmp_path / str(steps), tmp_path) for steps in range(deaths)]
        seen = [store.has("small") for store in left]
        assert seen == sorted(seen)
        assert {*seen} == {False, True}
        assert all(
            same(weights.load(store, "small").state, state)
            for store, is_seen in zip(left, seen, strict=True)
            if is_seen
        )
        for store in left[::4]:
            weights.fetch(store, "small", silent)
            assert same(weights.load(store, "small").state, state)


# Files that run code


def test_pickle_as_weights_is_not_loaded(copied: Store, state: State, tmp_path: Path) -> None:
    """Even if its digest is recorded: weights are read as safetensors only."""
    hostile, sprung = tmp_path / "hostile.pth", tmp_path / "sprung"
    torch.save({**state, "trap": Trap(sprung)}, hostile)
    recorded(copied, hostile)
    sentence = refusal(BadWeights, weights.load, copied, "small")
    assert sentence == f"{WEIGHTS} is not a safetensors file, or is cut short"
    assert not sprung.exists()
    torch.load(hostile, weights_only=False)  # to show that the trap is a trap
    assert sprung.exists()


@pytest.mark.parametrize("ending", ["pth", "pt"])
def test_other_files_in_the_folder_are_ignored(
    ending: str, copied: Store, state: State, tmp_path: Path
) -> None:
    beside = copied.root / "small" / f"weights.{ending}"
    torch.save({**random_state(seed=1), "trap": Trap(tmp_path / "sprung")}, beside)
    assert same(weights.load(copied, "small").state, state)
    (copied.root / "small" / WEIGHTS).unlink()
    refusal(MissingWeights, weights.load, copied, "small")
    assert not (tmp_path / "sprung").exists()


def test_downloaded_pickle_with_code_does_not_run(state: State, tmp_path: Path) -> None:
    """Even if its digest is the manifest's."""
    file, sprung = tmp_path / "hostile.pth", tmp_path / "sprung"
    torch.save({**state, "trap": Trap(sprung)}, file)
    with serving(Website(file.read_bytes())) as url:
        store = sourced(tmp_path / "store", url, file)
        sentence = refusal(BadWeights, weights.fetch, store, "small", silent)
    assert "holds more than tensors" in sentence
    assert not store.has("small")
    assert not sprung.exists()


# A full disk


@pytest.fixture
def full() -> Path:
    """A file of `/dev/full`, on which each write fails with ENOSPC."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    return device


FILES = ["download.pth", "weights.part", "weights.safetensors.part"]  # in the order of writing


@pytest.mark.parametrize("name", FILES)
def test_full_disk_while_fetching(
    name: str, full: Path, files: Mapping[str, Path], state: State, tmp_path: Path
) -> None:
    with serving(Website(files["pth"].read_bytes())) as url:
        store = sourced(tmp_path, url, files["pth"])
        place = tmp_path / "small" / name
        place.symlink_to(full)
        said = refusal(ModelError, weights.fetch, store, "small", silent).splitlines()
        assert "No space left on device" in said[0]
        assert not [line for line in said[1:] if "No space" in line]
        assert not store.has("small")
        place.unlink()
        weights.fetch(store, "small", silent)
    assert same(weights.load(store, "small").state, state)


@pytest.mark.parametrize("name", FILES[1:])
def test_full_disk_while_importing_keeps_the_old_weights(
    name: str, full: Path, copied: Store, state: State, tmp_path: Path
) -> None:
    torch.save(random_state(seed=1), tmp_path / "fresh.pth")
    (copied.root / "small" / name).symlink_to(full)
    sentence = refusal(
        ModelError, weights.install, copied, "small", tmp_path / "fresh.pth", source="a test"
    )
    assert sentence == f"cannot write to {copied.root / 'small'}: No space left on device"
    assert same(weights.load(copied, "small").state, state)


def test_weights_that_cannot_be_read_are_refused(copied: Store) -> None:
    path = copied.root / "small" / WEIGHTS
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose first page is not there
    sentence = refusal(BadWeights, copied.verify, "small")
    assert sentence == f"cannot read {path}: Input/output error"
