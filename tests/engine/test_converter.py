"""Conversion to OpenVINO: results equal PyTorch's, or the conversion fails."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import small
import torch
from batches import SHORT, WARP, batch, cuts, whole
from conftest import ROOT
from PIL import Image
from small import Toy, toy
from torch import Tensor, nn

from service.engine import converter, engine, openvino_graph, weights
from service.engine.networks import classifier_head
from service.engine.openvino_api import core
from service.engine.torch_network import Normalise
from service.engine.weights import Model
from service.errors import ModelError, NotConverted
from service.imaging.crops import CROP, DENSE
from service.models.converted_model import Converted
from service.models.store import FLOATS, Store
from service.settings import Settings

NAME = "bvlc_googlenet"
Outputs = Sequence[npt.NDArray[np.float32]]


def computed(made: Converted, x: Tensor) -> Outputs:
    """Compute a converted model's results in float32."""
    graph = openvino_graph.read(made)
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [*compiled(x.numpy()).values()]


def taken(model: Model, photos: Sequence[Image.Image], side: int) -> Tensor:
    """Preprocessed photos: (N, 3, side, side)."""
    name, resize = ("single", WARP) if side == CROP else ("dense", SHORT)
    pixels = np.stack([cuts(photo, name, resize).canvases[0][:side, :side] for photo in photos])
    x: Tensor = Normalise(model.manifest.preprocessing, torch.float32)(torch.from_numpy(pixels))
    return x.contiguous()


@pytest.fixture(scope="module", params=[NAME, "torchvision_googlenet"])
def googlenet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """GoogLeNet with the real weights, or torchvision's with random ones."""
    if request.param == NAME:
        store: Store = request.getfixturevalue("real_store")
        return weights.load(store, NAME)
    root = tmp_path_factory.mktemp("torchvision")
    return weights.load(small.stored(root, "torchvision_googlenet"), "small")


def test_converted_googlenet_equals_pytorch(
    googlenet: Model, photos: Sequence[Image.Image]
) -> None:
    """One graph for views of either size and for any number of them."""
    made = converter.make(googlenet)
    network = made.description.network
    assert (network.sides, network.window) == ((CROP, DENSE), 7)
    assert made.description.weights == googlenet.sha256
    whole, _ = classifier_head.with_features(googlenet.network())
    for side in (CROP, DENSE):
        x = taken(googlenet, photos[:4], side)
        with torch.inference_mode():
            logits, features = whole(x)
        found = computed(made, x)
        assert found[1].shape == features.shape == (4, 1024, side // 32, side // 32)
        probabilities = torch.from_numpy(found[0]).softmax(1)
        torch.testing.assert_close(probabilities, logits.softmax(1), rtol=0, atol=1e-4)
        largest = float(features.abs().max())
        assert np.abs(found[1] - features.numpy()).max() < 1e-4 * largest
        (one,) = computed(made, x[:1])[:1]
        np.testing.assert_allclose(one, found[0][:1], rtol=1e-4, atol=1e-3)


# Every network with a manifest, and one of each family of torchvision's; vgg16 is VGG's.

ONE_SIZE = {"maxvit_t", "swin_t", "swin_v2_t", "vit_b_32"}
QUICK = ("lenet5", "mobilenet_v3_small", "resnet18", "squeezenet1_1")
SLOW = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "regnet_x_400mf", "resnet50"),
    *("se_resnet50", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t"),
    *("vgg16", "vit_b_32", "xception", "zfnet"),
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_conversion_for_the_supported_view_sizes(name: str, tmp_path: Path) -> None:
    """Windowed attention needs a different graph for each size."""
    model = weights.load(small.stored(tmp_path, name), "small")
    made = converter.make(model)
    assert made.description.network.sides == ((CROP,) if name in ONE_SIZE else (CROP, DENSE))
    x = small.smooth(3, seed=5)
    with torch.inference_mode():
        expected = model.network()(x).softmax(1)
    assert expected.std() > 1e-3
    found = computed(made, x)
    # Through 152 layers of random weights, float32's rounding errors grow to some 1e-4.
    assert float((torch.from_numpy(found[0]).softmax(1) - expected).abs().max()) < 1e-3
    assert len(found) == 1 + model.explains


# Failing conversions.


class Unknown(nn.Module):
    """Uses an operation that OpenVINO lacks."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3)
        return torch.special.bessel_j0(x).mean((2, 3))


class Constant(nn.Module):
    """Hard-codes the number of rows at tracing."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3)
        return x.mean((2, 3)) * int(x.shape[0])


class Raising(nn.Module):
    """Fails."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - it gives nothing
        raise ValueError(f"{len(x)} are too many")


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Unknown, "bessel_j0"),
        (Constant, "from PyTorch's probabilities"),
        (Raising, "2 are too many"),
    ],
)
def test_unconvertible_network_error(network: type[nn.Module], why: str) -> None:
    class Odd(Toy):
        def network(self) -> nn.Module:
            return network().eval()

    root = logging.getLogger()
    before = root.level, [*root.filters], [*root.handlers]
    with pytest.raises(NotConverted) as caught:
        converter.make(toy(Odd))
    sentence = str(caught.value)
    assert sentence.startswith("googlenet cannot be converted for OpenVINO: ")
    assert why in sentence
    assert "\n" not in sentence
    assert (root.level, root.filters, root.handlers) == before  # the library would change them


class OfEachSize(nn.Module):
    """Hard-codes the side at tracing."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 3)
        return x.mean((2, 3)) * (int(x.shape[2]) / CROP) ** 8


def test_graph_of_one_view_size_is_the_fallback() -> None:
    class Sized(Toy):
        def network(self) -> nn.Module:
            return OfEachSize()

    model = toy(Sized)
    assert model.sides == (CROP, DENSE)
    assert converter.make(model).description.network.sides == (CROP,)


# Through the store.


def settings(store: Store, **chosen: object) -> Settings:
    return Settings.model_validate(
        {"model": "small", "model_store": store.root, "device": "cpu", "precision": "float32",
         "max_batch": 2, "cpu_threads": 1, **chosen}
    )  # fmt: skip


def answer(store: Store, image: Image.Image, **chosen: object) -> npt.NDArray[np.float64]:
    """Load an engine and compute an image's probabilities."""
    loaded = engine.load(settings(store, **chosen))
    (found,) = loaded.executors[0].run(batch(whole(cuts(image, "single"))))
    assert isinstance(found, np.ndarray)
    return found


def test_a_model_is_converted_once(tmp_path: Path) -> None:
    store = small.stored(tmp_path, "lenet5")
    assert not store.has("small", FLOATS)
    assert converter.convert(store, "small")
    digest = store.read("small", FLOATS)[1]
    assert not converter.convert(store, "small")
    assert store.read("small", FLOATS)[1] == digest


def test_load_converts_a_model_first(tmp_path: Path, photos: Sequence[Image.Image]) -> None:
    store = small.stored(tmp_path, "lenet5")
    found = answer(store, photos[0])
    assert not converter.convert(store, "small")
    assert found == pytest.approx(answer(store, photos[0], device="torch-cpu"), abs=1e-4)


def test_unconvertible_model_runs_on_pytorch(
    tmp_path: Path, photos: Sequence[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """The conversion fails because a folder is in the place of the lock file."""
    store = small.stored(tmp_path, "lenet5")
    lock = tmp_path / "small/weights.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    found = answer(store, photos[0])
    (record,) = (one for one in caplog.records if "running it with PyTorch" in one.message)
    assert f"cannot write to {tmp_path / 'small'}: Is a directory" in record.message
    assert record.message.count("\n") == 0
    assert not store.has("small", FLOATS)
    assert found == pytest.approx(answer(store, photos[0], device="torch-cpu"), abs=1e-6)
    with pytest.raises(ModelError, match="Is a directory"):
        engine.load(settings(store, precision="int8"))


# No network connections.

WATCH = """
import sys, traceback

def watch(event, arguments):
    remote = event == "socket.connect" and isinstance(arguments[1], tuple)  # not one of a file
    if remote or event in ("socket.getaddrinfo", "socket.gethostbyname"):
        with open({log!r}, "a") as log:
            log.write(f"{{event}} {{arguments[1:]}}\\n")
        raise PermissionError(event)

sys.addaudithook(watch)
"""


def watched(folder: Path) -> tuple[Mapping[str, str], Path]:
    """An environment in which Python processes record and refuse connections."""
    log = folder / "connections.log"
    (folder / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}, log


def python(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, *arguments],
        cwd=ROOT, env={**environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_connection_watch_detects_connections(tmp_path: Path) -> None:
    environment, log = watched(tmp_path)
    connect = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"
    assert python(environment, "-c", connect).returncode == 1
    assert log.read_text().startswith("socket.")


@pytest.mark.slow
def test_no_network_connections(tmp_path: Path, shared: Path) -> None:
    environment, log = watched(tmp_path)
    store = small.stored(tmp_path, "lenet5")
    chosen = (f"--model-store={store.root}", "--model=small", "--device=cpu", "--cpu-threads=1")
    photo = str(shared / "photos/flickr/beagle.jpg")
    for command in (
        ("models", "convert", "small", chosen[0]),
        ("classify", photo, *chosen, "--json"),
    ):
        done = python(environment, "-m", "service", *command)
        assert done.returncode == 0, done.stderr
    assert '"label"' in done.stdout
    folder = ("--calibrate", str(ROOT / "model_store/digits/held_out"))
    done = python(environment, "-m", "service", "models", "quantize", "small", *folder, chosen[0])
    assert "int8 has the first label of float32 on" in done.stdout + done.stderr
    assert not log.exists()
