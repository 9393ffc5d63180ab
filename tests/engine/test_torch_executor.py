"""The PyTorch executor: the CPU as the reference for OpenVINO, and GPUs."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import small
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from batches import SHORT, WARP, asking, batch, cuts, expected_views, noise, plain, whole
from conftest import needs_gpu
from PIL import Image
from small import softmax, toy
from test_networks import lively
from torch import Tensor, nn

from service.engine import batch_assembly, engine, torch_device, torch_executor
from service.engine.cuda_fusion import ConvReLU, fuse
from service.engine.engine import Engine
from service.engine.executor import DeviceExecutor
from service.engine.networks import ARCHITECTURES
from service.engine.networks.googlenet import GoogLeNet
from service.engine.networks.tracing import RELUS, folded
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, OutOfMemory
from service.imaging import crops
from service.imaging.activation_map import Activation
from service.imaging.crops import CROP, DENSE, Resize
from service.models.store import Store
from service.scheduling.cost_model import Buckets, Key
from service.scheduling.types import Batch, Slice
from service.settings import Settings

NAME = "bvlc_googlenet"
CPU = torch.device("cpu")


# Devices.


@pytest.mark.parametrize(
    ("choice", "gpus", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("torch-cpu", 0, ["cpu"]),
        ("torch-cpu", 2, ["cpu"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 1, ["cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", 2, ["cuda:1"]),
    ],
)
def test_devices_of_a_setting(choice: str, gpus: int, expected: list[str]) -> None:
    assert [str(device) for device in torch_device.devices(choice, gpus)] == expected


@pytest.mark.parametrize("choice", ["cuda", "cuda:0", "cuda:7"])
def test_missing_gpu_error_has_instructions(choice: str) -> None:
    with pytest.raises(ModelError, match=f"there is no GPU for device '{choice}'; use auto or cpu"):
        torch_device.devices(choice, 0)


@pytest.mark.parametrize(("choice", "gpus"), [("cuda:1", 1), ("cuda:2", 2)])
def test_gpu_index_out_of_range(choice: str, gpus: int) -> None:
    with pytest.raises(ModelError, match=f"there is no '{choice}': this machine's {gpus} GPUs"):
        torch_device.devices(choice, gpus)


@pytest.mark.parametrize(
    ("device", "max_batch", "expected"),
    [
        ("cpu", 0, (1, 2, 4, 8, 16)),
        ("cuda", 0, (1, 2, 4, 8, 16, 32, 64)),
        ("cpu", 1, (1,)),
        ("cpu", 3, (1, 2, 3)),
        ("cuda", 48, (1, 2, 4, 8, 16, 32, 48)),
    ],
)
def test_sizes_are_powers_of_two_and_the_largest(
    device: str, max_batch: int, expected: tuple[int, ...]
) -> None:
    assert torch_device.sizes(torch.device(device), max_batch) == expected


def test_a_forward_on_the_cpu_keeps_no_gradients() -> None:
    forward = torch_device.forwards(CPU)
    for _ in range(2):  # a context for every run
        with forward():
            assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


def test_cpu_out_of_memory_differs_from_other_errors() -> None:
    with pytest.raises(OutOfMemory, match="no memory for this batch"), torch_device.memory():
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="must match"), torch_device.memory():
        torch.zeros(2) + torch.zeros(3)


def test_gpu_out_of_memory() -> None:
    """PyTorch's own error type; a later test raises it on a real GPU."""
    with pytest.raises(OutOfMemory), torch_device.memory():
        raise torch.OutOfMemoryError


# Views, gathered as on a GPU.

gathered = partial(torch_executor.gathered, device=CPU)


@pytest.mark.parametrize("name", crops.NAMES)
@pytest.mark.parametrize("resize", [WARP, SHORT])
def test_gathered_views_equal_views_cut_one_by_one(name: str, resize: Resize) -> None:
    one, two = cuts(noise(0), name, resize), cuts(noise(1, 200, 400), name, resize)
    half = len(one.plan.views) // 2
    asked = batch(Slice(one, half, len(one.plan.views)), whole(two), size=256)
    made = gathered(asked)
    assert made.dtype == torch.uint8
    expected = np.stack(expected_views(asked.slices[0]) + expected_views(asked.slices[1]))
    assert np.array_equal(made[: len(expected)].numpy(), expected)
    assert np.array_equal(made.numpy(), batch_assembly.assemble(asked))


def test_pixels_and_tensors_are_gathered_in_float32() -> None:
    pixels = cuts(noise(8), "ten")
    view = np.random.default_rng(9).normal(100, 90, (CROP, CROP, 3)).astype(np.float32)
    asked = batch(Slice(pixels, 1, 3), whole(plain(view)), Slice(pixels, 9, 10), size=8)
    made = gathered(asked).numpy()
    assert made.dtype == np.float32
    assert np.array_equal(made[2], view)
    assert np.array_equal(made, batch_assembly.assemble(asked))


# Preprocessing, on a network with simple arithmetic.


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_preprocessing_and_temperature_of_the_manifest(kind: type[np.generic]) -> None:
    colour = np.broadcast_to(np.array((130, 125, 90), kind), (CROP, CROP, 3))
    bgr = np.array([90 - 104, 125 - 117, 130 - 123])
    rgb = np.array([0.5 * (130 - 100), 125 - 110, 2.0 * (90 - 120)])
    mean, scale = (100.0, 110.0, 120.0), (0.5, 1.0, 2.0)
    models = [
        toy(),
        small.calibrated(toy(), 2.5, "0" * 64),
        small.preprocessed(toy(), channels="RGB", mean=mean, scale=scale),
    ]
    (run,) = torch_executor.executors(models, [CPU], torch.float32)
    asked = whole(plain(np.ascontiguousarray(colour)))
    for number, logits in enumerate((0.1 * bgr, 0.1 * bgr / 2.5, 0.1 * rgb)):
        (found,) = run.run(batch(asked, member=number, size=2))
        assert found == pytest.approx(softmax(logits), abs=1e-6)


# The reference for OpenVINO.


def load(store: Store, device: str, **chosen: object) -> Engine:
    return engine.load(
        Settings.model_validate(
            {"model": NAME, "model_store": store.root, "device": device, "precision": "float32",
             "max_batch": 4, "cpu_threads": 1, **chosen}
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(real_store: Store) -> Engine:
    """The real weights by PyTorch on the CPU."""
    return load(real_store, "torch-cpu")


@pytest.fixture(scope="module")
def openvino(real_store: Store) -> Engine:
    """The real weights by OpenVINO."""
    return load(real_store, "cpu")


def run(executor: DeviceExecutor, asked: Batch[PreparedImage]) -> npt.NDArray[np.float64]:
    return np.stack([np.asarray(found) for found in executor.run(asked)])


def test_openvino_equals_pytorch_on_16_photos(
    reference: Engine, openvino: Engine, photos: Sequence[Image.Image]
) -> None:
    labels = set()
    for photo in photos:
        asked = batch(whole(cuts(photo, "single")))
        expected, found = (run(one.executors[0], asked)[0] for one in (reference, openvino))
        assert np.abs(found - expected).max() < 1e-4
        labels.add(int(expected.argmax()))
    assert len(labels) > 10


@pytest.mark.parametrize(("name", "side"), [("ten", CROP), ("dense", DENSE)])
def test_openvino_equals_pytorch_on_other_views(
    name: str, side: int, reference: Engine, openvino: Engine, photos: Sequence[Image.Image]
) -> None:
    """In batches that are padded to a bucket by the one, and not by the other."""
    one, other = (cuts(photo, name) for photo in photos[:2])
    slices = (Slice(one, 1, 2), Slice(other, 0, 2))
    assert reference.ensemble.costs.curves[Key(0, side)].fitting(3) == 4
    assert openvino.ensemble.costs.curves[Key(0, side)].fitting(3) == 3
    expected = run(reference.executors[0], batch(*slices, size=4))
    found = run(openvino.executors[0], batch(*slices))
    assert np.abs(found - expected).max() < 2e-4  # sums of two


@pytest.mark.parametrize(("name", "view"), [("single", 0), ("ten", 7), ("dense", 1)])
def test_openvino_maps_equal_pytorch_s(
    name: str, view: int, reference: Engine, openvino: Engine, photos: Sequence[Image.Image]
) -> None:
    payload = replace(cuts(photos[0], name), size=photos[0].size, target=162)
    (expected,), (found,) = (
        one.executors[0].run(asking(payload, view)) for one in (reference, openvino)
    )
    assert isinstance(expected, Activation)
    assert isinstance(found, Activation)
    assert np.abs(expected.grid).max() > 0.1
    assert found.grid == pytest.approx(expected.grid, abs=1e-3)
    assert (found.logit, found.bias) == pytest.approx((expected.logit, expected.bias), abs=1e-3)
    assert found.box == expected.box


def test_pytorch_runs_buckets_on_one_device(reference: Engine) -> None:
    said = reference.ensemble
    assert (said.device, said.precision, len(reference.executors)) == ("cpu", "float32", 1)
    for key, curve in said.costs.curves.items():
        assert isinstance(curve, Buckets)
        assert curve.sizes == ([1] if key.maps else [1, 2, 4])


def test_auto_is_float32_on_a_cpu(tmp_path: Path) -> None:
    loaded = load(small.stored(tmp_path, "lenet5"), "torch-cpu", model="small", precision="auto")
    assert loaded.ensemble.precision == "float32"


def test_bfloat16_by_pytorch_agrees_on_photos(
    real_store: Store, reference: Engine, photos: Sequence[Image.Image]
) -> None:
    half = load(real_store, "torch-cpu", precision="bfloat16", max_batch=1)
    assert half.ensemble.precision == "bfloat16"
    for photo in photos[:3]:
        asked = batch(whole(cuts(photo, "single")))
        exact, rounded = (run(one.executors[0], asked)[0] for one in (reference, half))
        assert exact.argmax() == rounded.argmax()
        assert 0 < np.abs(exact - rounded).max() < 0.05


def test_int8_is_refused(real_store: Store) -> None:
    with pytest.raises(ModelError, match="int8 is for a CPU, where OpenVINO computes"):
        load(real_store, "torch-cpu", precision="int8")


# Fusion of convolutions and ReLUs.


class Twice(nn.Module):
    """A convolution whose output has a second user, and one without ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> the same
        x = self.shared(x)
        return self.last(F.relu(x) - x)  # type: ignore[no-any-return]  # nn.Module calls are untyped


@pytest.mark.parametrize("name", ["googlenet", "torchvision_googlenet"])
def test_all_relus_are_fused(name: str) -> None:
    network = ARCHITECTURES[name].build(10).eval()
    fused = fuse(network)
    assert sum(isinstance(module, ConvReLU) for module in fused.modules()) == 57
    assert not any(node.target in RELUS for node in fused.graph.nodes)


def test_convolution_with_another_user_is_not_fused() -> None:
    network = Twice().eval()
    x = torch.randn(2, 3, 4, 4)
    wanted = network(x)
    assert torch.equal(fuse(copy.deepcopy(network))(x), wanted)


class Modules(nn.Module):
    """ReLUs that are modules, one of them used twice, and a convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - (N, 3, H, W) -> (N, 4, H, W)
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.relu(self.grouped(x))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def test_relu_modules_are_fused_but_not_for_groups() -> None:
    fused = fuse(Modules().eval())
    assert sum(isinstance(module, ConvReLU) for module in fused.modules()) == 2
    names = [str(node.target) for node in fused.graph.nodes if node.op == "call_module"]
    assert names == ["fused_first", "fused_second", "grouped", "relu"]


def test_batch_norm_is_folded_into_the_convolution_before_it() -> None:
    network = lively(ARCHITECTURES["torchvision_googlenet"].build(10))
    x = small.tensor(2, 3, CROP, CROP)
    with torch.inference_mode():
        wanted = network(x)
        fused = folded(network)
        torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


# On a GPU.

GPU = torch.device("cuda", 0)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 8])
def test_fused_network_equals_the_original_on_a_gpu(rows: int) -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's stub
    network = GoogLeNet(classes=10, auxiliary=False).eval().to(GPU)
    x = 50 * torch.randn(rows, 3, 224, 224, device=GPU)
    with torch.inference_mode():
        wanted = network(x)
        assert torch.allclose(fuse(network)(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


@needs_gpu
def test_gpu_cuts_equal_cpu_cuts() -> None:
    asked = batch(whole(cuts(noise(6), "paper")), whole(cuts(noise(7), "single")), size=160)
    on_gpu = torch_executor.cut(asked, GPU)
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.cpu(), torch_executor.cut(asked, CPU))


@needs_gpu
def test_tensors_are_concatenated_on_a_gpu() -> None:
    parts = [torch.randint(0, 256, (length, 3), dtype=torch.uint8) for length in (50, 1, 14)]
    there = torch_device.to_device(parts, GPU)
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), torch.cat(parts))


@needs_gpu
def test_graphs_are_replayed_by_shape() -> None:
    calls = []

    def double(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x * 2

    with torch_device.forwards(GPU)():
        doubled = torch_device.recorded(double, GPU)
        for value, length in ((1.0, 2), (2.0, 3), (3.0, 2), (4.0, 3)):
            result = doubled(torch.full((length,), value, device=GPU))
            assert result.tolist() == [2 * value] * length
    assert calls == [(2,), (2,), (3,), (3,)]  # once to set up, once to be recorded


@needs_gpu
def test_a_forward_on_a_gpu_has_a_stream_of_its_own() -> None:
    one, other = torch_device.forwards(GPU), torch_device.forwards(GPU)
    streams = []
    for forward in (one, one, other):
        with forward():
            assert torch.is_inference_mode_enabled()
            streams.append(torch.cuda.current_stream(GPU))
    assert streams[0] == streams[1] != streams[2]
    assert torch.cuda.current_stream(GPU) == torch.cuda.default_stream(GPU)


@needs_gpu
def test_gpu_recovers_from_out_of_memory() -> None:
    with pytest.raises(OutOfMemory), torch_device.memory():
        torch.empty(2**50, device="cuda")
    assert float(torch.ones(3, device="cuda").sum()) == 3


@pytest.fixture(scope="module")
def on_gpu(real_store: Store) -> Engine:
    """The real weights on a GPU."""
    return load(real_store, "cuda:0", max_batch=2)


@needs_gpu
def test_gpu_results_equal_cpu_results(
    on_gpu: Engine, reference: Engine, photos: Sequence[Image.Image]
) -> None:
    assert [executor.device for executor in on_gpu.executors] == [0, 0]
    for photo in photos[:5]:
        for name in ("ten", "dense"):
            asked = batch(Slice(cuts(photo, name), 0, 2))
            expected = run(reference.executors[0], asked)
            for executor in on_gpu.executors:
                assert run(executor, asked) == pytest.approx(expected, abs=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", ["single", "dense"])
def test_gpu_maps_equal_cpu_maps(
    name: str, on_gpu: Engine, reference: Engine, photos: Sequence[Image.Image]
) -> None:
    for photo in photos[:3]:
        payload = replace(cuts(photo, name), size=photo.size, target=162)
        (expected,), (found,) = (
            one.executors[0].run(asking(payload)) for one in (reference, on_gpu)
        )
        assert isinstance(expected, Activation)
        assert isinstance(found, Activation)
        assert found.grid == pytest.approx(expected.grid, abs=1e-2)
        assert found.logit == pytest.approx(expected.logit, abs=1e-3)
        assert found.box == expected.box


@needs_gpu
def test_gpu_runs_tensors_beside_images(
    on_gpu: Engine, reference: Engine, photos: Sequence[Image.Image]
) -> None:
    """One row of each kind, then each kind alone: graphs are recorded by type, too."""
    pixels = cuts(photos[0], "single")
    exact = replace(pixels, canvases=tuple(np.float32(one) for one in pixels.canvases))
    wanted = run(reference.executors[0], batch(whole(pixels)))[0]
    for given in ([pixels, exact], [pixels], [exact], [pixels, pixels], [exact, exact]):
        for found in run(on_gpu.executors[0], batch(*map(whole, given))):
            assert found == pytest.approx(wanted, abs=1e-3)


@needs_gpu
def test_auto_is_float16_on_a_gpu_if_it_agrees(real_store: Store) -> None:
    assert load(real_store, "auto", precision="auto", max_batch=1).ensemble.precision == "float16"
