"""The networks other than GoogLeNet: published sizes, and serving."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from conftest import ROOT, FakeBackend, fake_backend, threaded
from PIL import Image
from starlette.testclient import TestClient
from test_classify import assert_problem, encoded, service
from test_networks import lively, noise, watched
from test_store import describe
from torch import Tensor, nn
from torchvision import models

from service.engine import converter, engine, networks, profiling, weights
from service.engine.networks import ARCHITECTURES, classifier_head, lenet5
from service.engine.networks.tracing import traced
from service.engine.networks.uninitialized import Uninitialized
from service.engine.networks.windowed import Windowed
from service.engine.precision import AGREEMENT
from service.engine.prepared_image import PreparedImage, prepare
from service.engine.torch_network import Features, Normalise, Probabilities
from service.engine.weights import Model
from service.errors import ModelError
from service.imaging import crops
from service.imaging.crops import CROP, DENSE
from service.imaging.image_decoder import Bounds
from service.models.store import Store
from service.scheduling.cost_model import Key
from service.scheduling.types import Executor, Slice
from service.settings import Settings

CPU = torch.device("cpu")
KIND = {"Content-Type": "image/jpeg"}

# One of each family of torchvision's.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
    *("swin_v2_t", "vgg11_bn", "vit_b_32"),
)
EXPLAINED = {
    *("densenet121", "efficientnet_b0", "efficientnet_v2_s", "inception_v3", "mnasnet0_5"),
    *("mobilenet_v2", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t"),
}
FIXED = {"maxvit_t", "vit_b_32"}  # take no larger image


def numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Parameters.


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("googlenet", 6_998_552),
        ("torchvision_googlenet", 6_624_904),
        ("alexnet", 61_100_840),
        ("zfnet", 62_357_608),
        ("vgg16", 138_357_544),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("resnet152", 60_192_808),
        ("densenet121", 7_978_856),
        ("xception", 22_855_952),
        ("se_resnet50", 28_088_024),
    ],
)
def test_number_of_parameters_is_the_published_one(name: str, published: int) -> None:
    assert numbers(networks.architecture(name).outline(1000)) == published


def test_lenet5_parameters_by_layer() -> None:
    network = lenet5.LeNet5()
    layers = {name: numbers(layer) for name, layer in network.named_children()}
    assert layers == {
        "c1": 156,
        "s2": 12,
        "c3": 1516,
        "s4": 32,
        "c5": 48_120,
        "f6": 10_164,
        "output": 850,
    }
    assert numbers(network) - layers["output"] == 60_000


def test_xception_parameters_and_statistics_equal_keras() -> None:
    network = networks.architecture("xception").outline(1000)
    running = [v.numel() for n, v in network.named_buffers() if "running" in n]
    assert numbers(network) + sum(running) == 22_910_480


# What the papers say of the layers.


def test_lenet5_map_sizes() -> None:
    network = lenet5.LeNet5().eval()
    with watched(network) as calls, torch.inference_mode():
        network(noise(1, 3, CROP, CROP))
    shapes = {name: tuple(calls[name][0].gave.shape[1:]) for name in ("c1", "s2", "c3", "s4", "c5")}
    assert shapes == {
        "c1": (6, 28, 28),
        "s2": (6, 14, 14),
        "c3": (16, 10, 10),
        "s4": (16, 5, 5),
        "c5": (120, 1, 1),
    }
    assert calls["c1"][0].given.shape == (1, 1, 32, 32)


def test_lenet5_input_is_grey_and_shrunk() -> None:
    image = noise(1, 3, CROP, CROP)
    network = lenet5.LeNet5().eval()
    with watched(network) as calls, torch.inference_mode():
        network(image)
    tiles = image.reshape(3, 32, 7, 32, 7).mean((0, 2, 4))
    torch.testing.assert_close(calls["c1"][0].given[0, 0], tiles)


def test_lenet5_third_layer_connections() -> None:
    layer = lenet5.Partial(lenet5.TABLE_1)
    seen = []
    for one in range(6):
        x = torch.zeros(1, 6, 5, 5)
        x[:, one] = 1
        seen.append(layer(x).detach().flatten().ne(0))
    found = [tuple(one for one in range(6) if seen[one][number]) for number in range(16)]
    assert tuple(found) == lenet5.TABLE_1
    assert [len(row) for row in found] == [3] * 6 + [4] * 9 + [6]
    assert torch.stack(seen).sum(1).tolist() == [10] * 6  # each is seen by ten


def test_lenet5_subsampling() -> None:
    layer = lenet5.Subsampling(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1))
        layer.bias.copy_(torch.tensor([0.5, 0.0]).view(2, 1, 1))
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert layer(x).flatten().tolist() == [2 * 6 + 0.5, 3 * 22]


def test_zfnet_map_sizes() -> None:
    features = networks.architecture("zfnet").outline(10).get_submodule("features")
    x, sides = torch.empty(1, 3, CROP, CROP, device="meta"), []
    assert isinstance(features, nn.Sequential)
    for layer in features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(x.shape[-1])
    assert sides == [110, 55, 26, 13, 13, 13, 13, 6]


def test_xception_map_sizes() -> None:
    network = networks.architecture("xception").outline(10)
    with watched(network) as calls:
        network(torch.empty(1, 3, 299, 299, device="meta"))
    shapes = [tuple(calls[name][0].gave.shape[1:]) for name in ("entry", "middle", "exit")]
    assert shapes == [(728, 19, 19), (728, 19, 19), (2048, 10, 10)]


def test_se_resnet50_blocks_have_squeeze_and_excitation() -> None:
    network = lively(networks.architecture("se_resnet50").build(3))
    with watched(network) as calls, torch.no_grad():
        network(noise(1, 3, 64, 64))
    (block,), (norm,) = calls["layer2.1"], calls["layer2.1.bn3.0"]
    channels = norm.gave.mean((2, 3), keepdim=True)
    module = network.get_submodule("layer2.1.bn3.1")
    weighed = torch.sigmoid(module.fc2(torch.relu(module.fc1(channels)))) * norm.gave
    torch.testing.assert_close(block.gave, torch.relu(weighed + block.given))


# torchvision's.


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_networks_by_name(name: str) -> None:
    found = networks.architecture(name)
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    theirs = models.get_model(name, weights=None, num_classes=3, **options)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    outline = found.outline(3)
    assert {key: value.shape for key, value in outline.state_dict().items()} == shapes
    last = outline.get_submodule(found.last)
    assert last.get_parameter("weight").shape[0] == 3
    assert found.takes(CROP)
    assert found.takes(DENSE) == (name not in FIXED)
    assert found.explains == (name in EXPLAINED)


def test_all_torchvision_classifiers_are_listed() -> None:
    missing = [
        name
        for name in models.list_models(module=models)
        if not isinstance(networks.architecture(name), networks.Architecture)
    ]
    assert missing == []
    assert networks.architecture("googlenet") is ARCHITECTURES["googlenet"]  # the paper's


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("resnet5", "; do you mean 'resnet50'?"),
        ("ResNet50", "; do you mean 'resnet50'?"),
        ("lenet", "; do you mean 'lenet5'?"),
        ("fcn_resnet101_of_something_else", ""),
        ("fcn_resnet101", "; do you mean 'resnet101'?"),  # torchvision's, but no classifier
    ],
)
def test_unknown_name_error_has_the_closest_name(wrong: str, meant: str) -> None:
    with pytest.raises(ModelError) as caught:
        networks.architecture(wrong)
    assert str(caught.value) == (
        f"there is no architecture {wrong!r}; there are {', '.join(ARCHITECTURES)} and "
        f"torchvision's networks for classification{meant}"
    )


@pytest.mark.parametrize("name", ["torchvision_googlenet", "lenet5", "xception", "resnet18"])
def test_only_googlenet_has_widths(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} comes in width 1 only; googlenet in any"):
        networks.architecture(name).build(10, 0.5)


def test_alexnet_equals_torchvision_s_and_is_dense_on_larger_images() -> None:
    """The fully connected layers as convolutions, and the mean of the class map."""
    theirs = lively(models.alexnet(num_classes=5))
    ours = networks.architecture("alexnet").build(5).eval()
    networks.fill(ours, theirs.state_dict())
    usual, larger = noise(2, 3, CROP, CROP), noise(2, 3, DENSE, DENSE)
    with torch.inference_mode():
        assert torch.equal(ours(usual), theirs(usual))
        x = theirs.features(larger)  # (2, 256, 8, 8)
        for at, side in ((1, 6), (4, 1), (6, 1)):
            layer = theirs.classifier[at]
            x = F.conv2d(x, layer.weight.view(len(layer.weight), -1, side, side), layer.bias)
            x = F.relu(x) if at < 6 else x
        assert x.shape == (2, 5, 3, 3)
        assert x.std(dim=(2, 3)).min() > 0
        torch.testing.assert_close(ours(larger), x.mean((2, 3)))


@pytest.mark.parametrize(("name", "side"), [("alexnet", 6), ("zfnet", 6), ("vgg16", 7)])
def test_image_of_224_pixels_has_one_window(name: str, side: int) -> None:
    network = networks.architecture(name).outline(10)
    assert isinstance(network, Windowed)
    for pixels, places in ((CROP, side), (DENSE, side + 2)):
        map_ = network.features(torch.empty(1, 3, pixels, pixels, device="meta"))
        assert map_.shape[2:] == (places, places)
    assert network.side == side


def test_lenet5_is_the_mean_of_windows_on_larger_images() -> None:
    """As in the paper: a map of the outputs for each 32x32 window."""
    network = lively(ARCHITECTURES["lenet5"].build(4))
    image = noise(1, 3, DENSE, DENSE)
    with torch.inference_mode():
        logits = network(image)
        step = 4 * lenet5.SHRUNK  # two poolings by 2
        tiles = [
            image[:, :, top : top + CROP, left : left + CROP]
            for top in range(0, 3 * step, step)
            for left in range(0, 3 * step, step)
        ]
        torch.testing.assert_close(logits, torch.stack([network(one) for one in tiles]).mean(0))


# How networks end.


def model(root: Path, name: str) -> Model:
    """A model of three classes with random weights, through a store."""
    return weights.load(small.stored(root, name), "small")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("googlenet", CROP), ("googlenet", DENSE), ("resnet18", CROP), ("resnet18", DENSE)),
        *(("densenet121", DENSE), ("mobilenet_v2", DENSE), ("xception", DENSE), ("swin_t", CROP)),
    ],
)
def test_map_mean_plus_bias_is_the_logit(name: str, side: int, tmp_path: Path) -> None:
    one = model(tmp_path, name)
    assert one.explains
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    features = Features(one, CPU)
    with torch.inference_mode():
        logits, maps = features(pixels)
        expected = one.network()(Normalise(one.manifest.preprocessing, torch.float32)(pixels))
    torch.testing.assert_close(logits, expected)
    view = crops.View(0, 0, 0, side)
    plan = crops.Plan((crops.Canvas(crops.Resize("warp", side), side),), (view,))
    for row, target in enumerate((2, 0)):
        payload = PreparedImage(plan, (pixels[row].numpy(),), target=target)
        found = features.classifier.explain(
            maps[row].numpy(), logits[row].numpy(), Slice(payload, 0, 1)
        )
        assert found.grid.shape == (side // 32, side // 32)
        assert found.grid.std() > 1e-3
        assert found.logit == pytest.approx(float(expected[row, target]))
        assert found.grid.mean() + found.bias == pytest.approx(found.logit, rel=1e-4, abs=1e-4)


class Ending(nn.Module):
    """A convolution, then `pool`, then `last`."""

    def __init__(self, pool: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.last = nn.Conv2d(3, 4, 1), pool, last

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        return self.last(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]  # nn.Module calls are untyped


class Strided(nn.Module):
    """Averages of windows, then their average."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        return F.avg_pool2d(x, 7, stride=self.stride).mean((2, 3))


@pytest.mark.parametrize(
    ("pool", "last", "has_maps", "window"),
    [
        (nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2), True, None),
        (nn.AdaptiveAvgPool2d((1, 1)), nn.Sequential(nn.Dropout(), nn.Linear(4, 2)), True, None),
        (Strided(1), nn.Linear(4, 2), True, 7),
        (nn.AdaptiveAvgPool2d(2), nn.Linear(16, 2), False, None),
        (nn.AdaptiveMaxPool2d(1), nn.Linear(4, 2), False, None),
        (Strided(2), nn.Linear(4, 2), False, None),
        (nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(4, 2), nn.ReLU()), False, None),
        (
            nn.AdaptiveAvgPool2d(1),
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
            False,
            None,
        ),
    ],
)
def test_only_average_pooling_and_one_layer_have_maps(
    pool: nn.Module, last: nn.Module, *, has_maps: bool, window: int | None
) -> None:
    end = classifier_head.find(traced(Ending(pool, last).eval()))
    assert (end is not None) == has_maps
    if end is not None:
        assert (end.features.target, end.window) == ("features", window)


# Served.


@contextmanager
def served(root: Path, name: str) -> Iterator[tuple[TestClient, Model]]:
    """A client of an in-process service of a network with random weights."""
    store = small.stored(root, name)
    converter.convert(store, "small")
    chosen = Settings(model="small", model_store=store.root, device="cpu", precision="float32",
                      max_batch=1, cpu_threads=1)  # fmt: skip
    loaded = engine.load(chosen)
    backend = FakeBackend(loaded.ensemble, [Executor(threaded(loaded.executors[0].run), 0)])
    with service(lambda *_: backend) as client:
        yield client, weights.load(store, "small")


def image() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return encoded(Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC), "JPEG")


def expected(one: Model, network: nn.Module, plan: str) -> Mapping[str, float]:
    """The plain network's results for the same views, without batches or conversion."""
    (cuts,) = prepare(image(), [crops.plan(plan, one.manifest.preprocessing.resized)],
                      Bounds(10**8))  # fmt: skip
    pixels = []
    for view in cuts.plan.views:
        canvas = cuts.canvases[view.canvas]
        square = canvas[view.top : view.top + view.side, view.left : view.left + view.side]
        pixels.append(torch.tensor(square[:, ::-1].copy() if view.mirror else square))
    with torch.inference_mode():
        x = Normalise(one.manifest.preprocessing, torch.float32)(torch.stack(pixels))
        average = network(x).softmax(1).mean(0)
    return dict(zip((label.name for label in one.labels), average.tolist(), strict=True))


def answered(client: TestClient, plan: str) -> dict[str, float]:
    answer = client.post(f"/classify?views={plan}", content=image(), headers=KIND)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return {one["label"]: one["probability"] for one in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plans"),
    [
        ("lenet5", ["single", "ten", "dense"]),
        ("alexnet", ["ten", "dense"]),
        ("resnet18", ["single", "dense"]),
        ("xception", ["single", "dense"]),
        ("se_resnet50", ["single", "dense"]),
        ("mobilenet_v3_small", ["single", "dense"]),
    ],
)
def test_http_results_equal_the_plain_network_s(
    name: str, plans: list[str], tmp_path: Path
) -> None:
    with served(tmp_path, name) as (client, one):
        (said,) = client.get("/models").json()["models"]
        assert said["members"][0]["architecture"] == name
        assert said["explains"] == (name in {"resnet18", "xception", "se_resnet50"})
        network = one.network()
        for plan in plans:
            wanted = expected(one, network, plan)
            assert max(wanted.values()) < 0.999
            assert answered(client, plan) == pytest.approx(wanted, abs=1e-4)


def test_network_of_one_size_refuses_larger_views(tmp_path: Path) -> None:
    described = describe(tmp_path, architecture="vit_b_32").manifest("small")
    one = Model("small", described, (), "", {})
    assert one.sides == (CROP,)
    assert profiling.keys([one]) == [Key(0, CROP)]
    backend = fake_backend()
    members = (replace(backend.ensemble.members[0], sides=one.sides),)
    backend.ensemble = replace(backend.ensemble, members=members)
    with service(lambda *_: backend) as client:
        assert answered(client, "ten")
        for path in ("/classify", "/explain"):
            refused = client.post(f"{path}?views=dense", content=image(), headers=KIND)
            problem = assert_problem(refused, 422, "invalid_parameter")
            assert problem["detail"] == (
                "fake0 takes views of 224 pixels only, and those of `dense` have 288; "
                "ask for others"
            )


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "densenet121"])
def test_bfloat16_agrees(name: str, tmp_path: Path) -> None:
    one = model(tmp_path, name)
    rows = torch.randint(0, 256, (2, CROP, CROP, 3), dtype=torch.uint8)
    with torch.inference_mode():
        exact, half = (
            Probabilities(one, CPU, dtype)(rows)[0] for dtype in (torch.float32, torch.bfloat16)
        )
    assert 0 < (exact - half).abs().max() <= AGREEMENT


@pytest.mark.parametrize("name", ["googlenet", "lenet5", "resnet18", "swin_t", "vgg11"])
def test_loading_skips_random_initialization(name: str) -> None:
    before = torch.get_rng_state()
    dirt = [torch.full((1000, 1000), 1e30) for _ in range(20)]  # is in memory afterwards
    del dirt
    with Uninitialized():
        network = networks.architecture(name).build(3)
    assert torch.equal(torch.get_rng_state(), before)
    tables = dict(networks.architecture(name).build(3).named_buffers())
    for buffer, value in network.named_buffers():
        assert torch.equal(value, tables[buffer])


# Weights that others publish.


def test_densenet_published_names_are_renamed(tmp_path: Path) -> None:
    theirs = lively(models.densenet121())
    older = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name else name: value
        for name, value in theirs.state_dict().items()
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "published.pth")
    store = Store(tmp_path, ROOT / "model_store")
    weights.install(store, "densenet121", tmp_path / "published.pth", source="torchvision")
    ours = weights.load(store, "densenet121").network()
    with torch.inference_mode():
        x = noise(1, 3, 64, 64)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("inception_v3", 128, {"init_weights": False}),  # whose auxiliary classifier is dropped
        ("mnasnet0_5", 64, {}),  # which has a version of its modules
    ],
)
def test_weights_of_torchvision_s_networks_give_its_results(
    name: str, side: int, options: dict[str, bool], tmp_path: Path
) -> None:
    theirs = lively(models.get_model(name, weights=None, num_classes=3, **options))
    torch.save(theirs.state_dict(), tmp_path / "published.pth")
    store = describe(tmp_path, architecture=name)
    weights.install(store, "small", tmp_path / "published.pth", source="torchvision")
    ours = weights.load(store, "small")
    assert not [tensor for tensor in ours.state if tensor.startswith("Aux")]
    with torch.inference_mode():
        x = noise(1, 3, side, side)
        torch.testing.assert_close(ours.network()(x), theirs(x))
