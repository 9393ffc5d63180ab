"""What feature maps have seen: a deconvnet's projections, and the sheet that shows them."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from conftest import ROOT
from PIL import Image
from test_networks import lively
from torch import Tensor, nn

from service.__main__ import main
from service.engine import weights
from service.engine.networks import ARCHITECTURES
from service.engine.networks.googlenet import GoogLeNet
from service.engine.networks.tracing import folded
from service.engine.torch_network import Normalise
from service.engine.weights import Model
from service.errors import ModelError
from service.imaging import crops, image_decoder
from service.models.store import Store
from service.offline.visualize import contact_sheet, deconvnet, network_stages
from service.offline.visualize.contact_sheet import Square
from service.offline.visualize.deconvnet import Stage

Captured = pytest.CaptureFixture[str]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def looked(network: nn.Module, x: Tensor, count: int) -> dict[str, Stage]:
    return {stage.name: stage for stage in deconvnet.look(network, x, count)}


def alone(features: Tensor, channel: int) -> Tensor:
    """The largest activation of a feature map, all others 0."""
    kept = torch.zeros_like(features)
    values = features[0, channel]
    kept[0, channel] = values.where(values == values.max(), torch.zeros(()))
    return kept


def assert_equal(stage: Stage, features: Tensor, down: Callable[[Tensor], Tensor]) -> None:
    """A stage's projections are those of a deconvnet written by hand, to 1e-5 of the largest."""
    largest = features[0].amax((1, 2))
    strongest = largest.argsort(descending=True)[: len(stage.projections)].tolist()
    assert [projection.channel for projection in stage.projections] == strongest
    for made in stage.projections:
        assert made.activation == pytest.approx(float(largest[made.channel]), rel=1e-5)
        np.testing.assert_allclose(made.map, features[0, made.channel], rtol=1e-4, atol=1e-4)
        wanted = down(alone(features, made.channel))[0].permute(1, 2, 0).numpy()
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(made.pixels, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


# Deconvnets written by hand, with torch's own transposed convolution and unpooling.


class Small(nn.Module):
    """Convolutions, both kinds of ReLU, pools that do not overlap, batch norm, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LocalResponseNorm(5)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(12)
        self.average = nn.AvgPool2d(2)
        self.skip = nn.Conv2d(12, 12, 1)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.drop = nn.Dropout()
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        x = self.norm(self.pool(self.relu(self.conv1(x))))
        x = self.average(F.relu(self.batch_norm(self.conv2(x))))
        x = F.relu(self.conv3(x) + self.skip(x))
        return self.last(self.drop(x).mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def test_a_projection_is_that_of_a_deconvnet_written_by_hand() -> None:
    net = lively(Small())
    x = noise(1, 3, 32, 32)
    stages = looked(net, x, 3)
    assert list(stages) == ["conv1", "conv2", "conv3"]

    first = F.relu(net.conv1(x))
    pooled, switches = F.max_pool2d(first, 2, return_indices=True)
    second = F.relu(net.batch_norm(net.conv2(net.norm(pooled))))
    averaged = F.avg_pool2d(second, 2)
    third = F.relu(net.conv3(averaged) + net.skip(averaged))

    def from_first(down: Tensor) -> Tensor:
        return F.conv_transpose2d(down.relu(), net.conv1.weight, None, 2, 2, output_padding=1)

    def from_second(down: Tensor) -> Tensor:
        norm = net.batch_norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        down = down.relu() * scale[:, None, None]
        down = F.conv_transpose2d(down, net.conv2.weight, padding=1)
        return from_first(F.max_unpool2d(down, switches, 2))

    def from_third(down: Tensor) -> Tensor:
        down = down.relu()
        both = F.conv_transpose2d(down, net.conv3.weight, padding=1)
        both += F.conv_transpose2d(down, net.skip.weight)
        return from_second(F.interpolate(both, scale_factor=2) / 4)

    with torch.no_grad():
        assert_equal(stages["conv1"], first, from_first)
        assert_equal(stages["conv2"], second, from_second)
        assert_equal(stages["conv3"], third, from_third)


def unpooled(down: Tensor, switches: Tensor, like: Tensor) -> Tensor:
    """Put values where they came from; where windows overlap, several may come from one place."""
    flat = torch.zeros(like.shape).flatten(2)
    return flat.scatter_add(2, switches.flatten(2), down.flatten(2)).view(like.shape)


def seen_by(model: Model, photo: bytes) -> Tensor:
    """What the network takes of a photo."""
    preprocessing = model.manifest.preprocessing
    plan = crops.plan("single", preprocessing.resized)
    (view,) = crops.canvases(image_decoder.decode(photo, max_pixels=10**8), plan)
    return Normalise(preprocessing, torch.float32)(torch.from_numpy(view)[None])  # type: ignore[no-any-return]  # nn.Module calls are untyped


@pytest.fixture(scope="module")
def real(real_store: Store) -> Model:
    """The real weights."""
    return weights.load(real_store, "bvlc_googlenet")


@pytest.fixture(scope="module")
def seen(real: Model, beagle: bytes) -> dict[str, Stage]:
    """What the three strongest maps of each of the first four stages have seen of a beagle."""
    stages = deconvnet.look(real.network(), seen_by(real, beagle), 3)
    return {stage.name: stage for stage in itertools.islice(stages, 4)}


def test_the_real_googlenets_projections_are_those_of_a_deconvnet_written_by_hand(
    real: Model, seen: dict[str, Stage], beagle: bytes
) -> None:
    """Of its first three stages, the third of which has four branches."""
    x = seen_by(real, beagle)
    net = real.network()
    assert isinstance(net, GoogLeNet)
    block = net.inception["3a"]

    def transposed(down: Tensor, conv: nn.Conv2d) -> Tensor:
        return F.conv_transpose2d(down.relu(), conv.weight, padding=conv.padding)

    with torch.no_grad():
        first = F.relu(net.conv1(x))
        halved, switches_1 = F.max_pool2d(first, 3, 2, ceil_mode=True, return_indices=True)
        second = F.relu(net.conv2(F.relu(net.reduce2(net.norm1(halved)))))
        normed = net.norm2(second)
        halved, switches_2 = F.max_pool2d(normed, 3, 2, ceil_mode=True, return_indices=True)
        _, switches_3 = F.max_pool2d(halved, 3, 1, 1, return_indices=True)
        third = block(halved)

        def from_first(down: Tensor) -> Tensor:
            return F.conv_transpose2d(down.relu(), net.conv1.weight, None, 2, 3, output_padding=1)

        def from_second(down: Tensor) -> Tensor:
            down = transposed(transposed(down, net.conv2), net.reduce2)
            return from_first(unpooled(down, switches_1, first))

        def from_third(down: Tensor) -> Tensor:
            sizes = (64, 128, 32, 32)
            ones, threes, fives, pools = down.split(sizes, 1)
            summed = transposed(ones, block.conv_1x1)
            summed += transposed(transposed(threes, block.conv_3x3), block.reduce_3x3)
            summed += transposed(transposed(fives, block.conv_5x5), block.reduce_5x5)
            summed += unpooled(transposed(pools, block.pool_proj), switches_3, halved)
            return from_second(unpooled(summed, switches_2, second))

        assert_equal(seen["conv1"], first, from_first)
        assert_equal(seen["conv2"], second, from_second)
        assert_equal(seen["inception.3a"], third, from_third)


def test_the_strongest_maps_of_3b_respond_to_the_eyes_of_a_beagle(seen: dict[str, Stage]) -> None:
    eyes = ((82, 70), (27, 62))  # on the view, as a person sees it: pixels from the left and top
    for projection in seen["inception.3b"].projections:
        square = contact_sheet.bounds(projection.pixels)
        middle = square.left + square.side / 2, square.top + square.side / 2
        assert min(math.dist(middle, eye) for eye in eyes) < 6
        assert square.side < 50


# Stages.


class Branched(nn.Module):
    """ReLUs, one of them beside a path around it, and one behind the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.block = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)})
        self.hidden = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        x = self.features(x)
        x = torch.relu(x + self.block["b"](F.relu(self.block["a"](x))))
        return F.relu(self.hidden(x.mean((2, 3))))


def test_a_stage_is_a_convolution_that_all_activations_pass() -> None:
    _, names = network_stages.cut(folded(Branched().eval()))
    assert names == ("features.0", "block.a")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("googlenet", ["conv1", "conv2", *(f"inception.{n}" for n in (
            "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))]),
        ("torchvision_googlenet", ["conv1.conv", "conv3.conv", *(f"inception{n}" for n in (
            "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))]),
    ],
)  # fmt: skip
def test_every_architecture_has_its_stages(name: str, names: list[str]) -> None:
    _, stages = network_stages.cut(folded(ARCHITECTURES[name].build(2).eval()))
    assert list(stages) == names


def test_a_network_without_convolutions_has_no_stages() -> None:
    with pytest.raises(
        ModelError, match="has no convolutions before a ReLU that all activations pass"
    ):
        looked(
            nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU()).eval(), noise(1, 3, 2, 2), 1
        )


class Odd(nn.Module):
    """Begins with what no layer of the other networks does."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        return F.relu(self.conv(self.act(x)))


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (nn.GELU(), "GELU"),
        (nn.Softmax2d(), "Softmax2d"),
        (torch.tanh, "tanh"),
        (lambda x: x.sigmoid(), "sigmoid"),
    ],
)
def test_a_layer_or_function_without_a_rule_is_named(
    act: Callable[[Tensor], Tensor], name: str
) -> None:
    with pytest.raises(ModelError, match=f"the deconvnet has no rule for the layer {name}$"):
        looked(Odd(act).eval(), noise(1, 3, 8, 8), 1)


def test_a_map_without_any_activation_is_not_shown() -> None:
    conv = nn.Conv2d(3, 3, 3)
    nn.init.zeros_(conv.weight)
    conv.bias.data = torch.tensor([-1.0, 2.0, 0.0])
    first = looked(nn.Sequential(conv, nn.ReLU()).eval(), noise(1, 3, 8, 8), 5)["0"]
    (projection,) = first.projections
    assert (projection.channel, projection.activation) == (1, 2.0)
    assert not projection.pixels.any()
    assert (first.channels, first.size) == (3, (6, 6))


# The sheet.


def signed(places: list[tuple[int, int]], side: int = 100) -> np.ndarray:
    pixels = np.zeros((side, side, 3), np.float32)
    for row, column in places:
        pixels[row, column] = (-1, 0.2, 0)
    pixels[90, 90] = 0.05  # too little to matter
    return pixels


@pytest.mark.parametrize(
    ("places", "square"),
    [
        ([(50, 50)], Square(47, 47, 7)),
        ([(40, 30), (60, 40)], Square(22, 37, 27)),
        ([(0, 99)], Square(93, 0, 7)),
        ([(0, 0), (99, 99)], Square(0, 0, 100)),
    ],
)
def test_the_square_is_around_the_strongest_pixels_and_within_the_view(
    places: list[tuple[int, int]], square: Square
) -> None:
    assert contact_sheet.bounds(signed(places)) == square


def stage(pixels: np.ndarray, map_: np.ndarray) -> Stage:
    projection = deconvnet.Projection(7, 12.5, map_, pixels)
    return Stage("conv1", 64, (2, 2), (projection,))


@pytest.mark.parametrize("is_bgr", [False, True])
def test_a_row_has_the_map_the_projection_and_the_part_of_the_image(is_bgr: bool) -> None:  # noqa: FBT001 - a parameter of the test
    view = np.zeros((100, 100, 3), np.uint8)
    view[40:60, 40:60] = (10, 200, 30)
    pixels = np.zeros((100, 100, 3), np.float32)
    pixels[40:60, 40:60, 2 if is_bgr else 0] = 2.0  # red
    map_ = np.array([[0, 0], [0, 3]], np.float32)
    drawn = contact_sheet.draw(view, [stage(pixels, map_)], "a title", is_bgr=is_bgr)
    row = 36 + 100 + 28
    tiles = [drawn.crop((left, row, left + 128, row + 128)) for left in (206, 338, 470)]
    assert tiles[0].getpixel((10, 10)) == (0x12, 0x14, 0x2B)  # nothing
    assert tiles[0].getpixel((120, 120)) == (0xFF, 0xE9, 0xA8)  # the most
    assert tiles[0].getpixel((round(37 * 1.27), round(50 * 1.27))) == (0xFF, 0x95, 0x00)  # the mark
    assert tiles[1].getpixel((64, 64)) == (255, 128, 128)
    assert tiles[1].getpixel((3, 3)) == (128, 128, 128)
    assert tiles[2].getpixel((64, 64)) == (10, 200, 30)
    assert tiles[2].getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("places", [[], [(0, 0), (99, 99)]])
def test_a_projection_of_nearly_nothing_is_grey(places: list[tuple[int, int]]) -> None:
    """As where a bias alone activates a map."""
    pixels = np.zeros((100, 100, 3), np.float32)
    for place in places:
        pixels[place] = 1
    map_ = np.ones((2, 2), np.float32)
    view = np.zeros((100, 100, 3), np.uint8)
    drawn = contact_sheet.draw(view, [stage(pixels, map_)], "a title", is_bgr=False)
    tile = drawn.crop((338, 164, 338 + 128, 164 + 128))
    assert tile.getpixel((64, 64)) == (128, 128, 128)
    assert (tile.getpixel((0, 0))[0] > 200) == bool(places)


# The command.


@pytest.fixture(scope="module")
def digit() -> Path:
    return ROOT / "model_store/digits/held_out/3.png"


def test_the_command_draws_a_sheet(digit: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "sheet.png"
    assert main(["look", str(digit), "--model", "digits", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out} shows 11 stages of digits\n"
    with Image.open(out) as drawn:
        assert drawn.size == (1894, 72 + 224 + 28 + 11 * 168)
        colours = drawn.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 1000


@pytest.mark.parametrize(
    ("photo", "out", "sentence"),
    [
        ("absent.png", "sheet.png", "cannot read {0}/absent.png: No such file or directory"),
        (".", "sheet.png", "cannot read {0}: Is a directory"),
        ("broken.png", "sheet.png", "the PNG image is broken or cut short; send it whole"),
        ("text.png", "sheet.png", "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"),
        ("3.png", "sheet.jpg", "{0}/sheet.jpg: name a file that ends with .png"),
        ("3.png", "no/sheet.png", "cannot write {0}/no/sheet.png: No such file or directory"),
    ],
)
def test_unreadable_images_and_unwritable_files_are_errors(  # noqa: PLR0913, PLR0917 - what is given, and what is told
    photo: str, out: str, sentence: str, digit: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = digit.read_bytes()
    (tmp_path / "3.png").write_bytes(data)
    (tmp_path / "broken.png").write_bytes(data[:200])
    (tmp_path / "text.png").write_text("a three")
    paths = [str(tmp_path / photo), "--out", str(tmp_path / out)]
    assert main(["look", *paths, "--model", "digits"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    told = printed.err.splitlines()[-1]
    assert told == f"googlenet-service: {sentence.format(tmp_path)}"
