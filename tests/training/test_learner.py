"""A network that learns."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.engine import weights
from service.engine.networks.googlenet import GoogLeNet
from service.errors import ModelError
from service.models.manifest import Manifest, Preprocessing
from service.training import learner
from service.training.learner import AUXILIARY, Learner, Recipe
from service.training.loader import Batch
from service.training.process_group import ProcessGroup

SINGLE = ProcessGroup(0, 1, torch.device("cpu"))
WIDTH = 0.05


class Plain(nn.Module):
    """Makes of uint8 pixels what a network takes."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale and permute."""
        return (pixels.float() / 128 - 1).permute(0, 3, 1, 2)


def batch(seed: int = 0, rows: int = 4, classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 224, 224, 3), generator=generator, dtype=torch.uint8)
    targets = torch.arange(rows) % classes
    pixels[targets == 1, :, :112] //= 4
    return Batch(pixels, targets, 0.0)


def network(classes: int = 2, *, auxiliary: bool = True) -> GoogLeNet:
    torch.manual_seed(0)
    made = GoogLeNet(classes, WIDTH, auxiliary=auxiliary)
    learner.initialise(made)
    return made


def pupil(
    made: nn.Module, *, rate: float = 0.002, average: float = 0.9, decay: float = 0.0
) -> Learner:
    return Learner(made, Plain(), Recipe(rate, decay, average, 0), torch.float32, SINGLE)


def test_the_rate_is_4_per_cent_smaller_every_8_epochs() -> None:
    rates = [learner.rate(0.01, epoch) for epoch in (0, 7, 8, 15, 16, 80)]
    expected = [0.01, 0.01, 0.0096, 0.0096, 0.009216, 0.01 * 0.96**10]
    assert rates == pytest.approx(expected)


def test_the_auxiliary_classifiers_gradients_reach_4a_and_4d_and_nothing_behind() -> None:
    made = network()
    x = torch.randn(2, 3, 224, 224)
    made.train()
    for head, reached, unreached in (
        (1, "inception.4a.conv_1x1", "inception.4b.conv_1x1"),
        (2, "inception.4d.conv_1x1", "inception.4e.conv_1x1"),
    ):
        made.zero_grad()
        made(x)[head].square().sum().backward()
        weight = made.get_parameter(f"{reached}.weight")
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
        first = made.get_parameter("conv1.weight").grad
        assert first is not None
        assert first.abs().max() > 0
        assert made.get_parameter(f"{unreached}.weight").grad is None


def test_a_step_is_stochastic_gradient_descent_on_all_three_losses() -> None:
    made, rate = network(), 0.001
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = {name: value.clone() for name, value in made.state_dict().items()}
    example = batch()
    losses = [
        nn.functional.cross_entropy(logits, example.targets)
        for logits in made.train()(Plain()(example.pixels))
    ]
    whole = losses[0] + AUXILIARY * (losses[1] + losses[2])
    gradients = torch.autograd.grad(whole, list(made.parameters()))
    loss = pupil(made, rate=rate).step(example, 0, 0)
    assert loss == pytest.approx(losses[0].item(), rel=1e-5)
    for (name, value), gradient in zip(made.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(value.detach(), before[name] - rate * gradient)


def test_a_network_learns_a_batch() -> None:
    made = network()
    example = batch()
    learner.initialise_from_data(made, Plain()(example.pixels))
    student = pupil(made, average=0.5)
    losses = [student.step(example, 0, step) for step in range(60)]  # how quickly, a CPU decides
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert student.logits(example).argmax(1).tolist() == example.targets.tolist()


def test_an_initialised_network_tells_images_apart() -> None:
    made = network()
    x = Plain()(batch().pixels)
    learner.initialise_from_data(made, x)
    outputs: list[Tensor] = []
    for name in ("conv1", "conv2", "inception.4a.conv_3x3", "inception.5b.pool_proj"):
        made.get_submodule(name).register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        made.train()(x)
    assert len(outputs) == 4
    for deviation, mean in (torch.std_mean(output, (0, 2, 3)) for output in outputs):
        assert mean == pytest.approx(torch.zeros_like(mean), abs=1e-2)
        # A channel whose input is all 0 behind the ReLU says the same of all, and keeps 0.
        assert deviation[deviation > 0.5] == pytest.approx(1, abs=1e-2)
        assert (deviation > 0.5).any()


def test_dropout_has_the_chosen_rates() -> None:
    made = GoogLeNet(2, WIDTH)
    learner.initialise(made, 0.5)
    rates = {name: m.p for name, m in made.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == pytest.approx({"dropout": 0.2, "aux_4a.dropout": 0.35, "aux_4d.dropout": 0.35})


def test_the_average_keeps_little_at_first_and_then_the_chosen_share() -> None:
    made = network(auxiliary=False)
    student = pupil(made, average=0.4)
    name = "linear.weight"
    values = [made.state_dict()[name].clone()]
    expected: Tensor | None = None
    for step in range(5):
        student.step(batch(), 0, step)
        values.append(made.state_dict()[name].clone())
        kept = min(0.4, (1 + step) / (10 + step))
        last = values[-1]
        expected = last if expected is None else kept * expected + (1 - kept) * last
        torch.testing.assert_close(student.weights()[name], expected)
    assert not torch.equal(student.weights()[name], values[-1])


def test_chance_depends_on_the_step_alone() -> None:
    one, other = (pupil(network()) for _ in range(2))
    first = [one.step(batch(), 3, step) for step in range(2)]
    torch.manual_seed(99)
    assert [other.step(batch(), 3, step) for step in range(2)] == first


def test_a_restored_learner_continues_identically() -> None:
    one = pupil(network())
    one.step(batch(1), 0, 0)
    state = copy.deepcopy(one.state())  # as a file has it
    other = pupil(network())
    other.restore(state)
    assert one.step(batch(2), 0, 1) == other.step(batch(2), 0, 1)
    for name, value in one.weights().items():
        assert torch.equal(value, other.weights()[name])


def test_frozen_layers_stay_and_others_move() -> None:
    made = network(auxiliary=False)
    learner.freeze(made, "inception.4a")
    before = {name: value.clone() for name, value in made.state_dict().items()}
    pupil(made, rate=0.1, decay=0.1).step(batch(), 0, 0)
    moved = {n for n, v in made.named_parameters() if not torch.equal(v, before[n])}
    names = [name for name, _ in made.named_parameters()]
    first = names.index("inception.4b.conv_1x1.weight")
    assert not moved & set(names[:first])
    assert "inception.4b.conv_1x1.weight" in moved
    assert "linear.weight" in moved


def test_running_statistics_of_frozen_layers_stay_too() -> None:
    made = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=8), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)
    )
    made(torch.zeros(1, 3, 224, 224))
    learner.freeze(made, "1")
    before = made.state_dict()["1.running_mean"].clone()
    pupil(made).step(batch(), 0, 0)
    assert torch.equal(made.state_dict()["1.running_mean"], before)


def test_new_layers_learn_ten_times_as_fast() -> None:
    before = network(auxiliary=False).state_dict()
    moved = []
    for fresh in ((), ("linear.",)):
        made = network(auxiliary=False)
        recipe = Recipe(0.001, 0.0, 0.9, 0, fresh)
        Learner(made, Plain(), recipe, torch.float32, SINGLE).step(batch(), 0, 0)
        moved.append({name: value - before[name] for name, value in made.state_dict().items()})
    for name, plain in moved[0].items():
        times = 10 if name.startswith("linear.") else 1
        torch.testing.assert_close(moved[1][name], times * plain, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("last", ["inception.9z", "inception.4", "linear", ""])
def test_a_wrong_freeze_lists_the_modules(last: str) -> None:
    with pytest.raises(ModelError, match=rf"up to '{last}'; modules are conv1, reduce2, conv2"):
        learner.freeze(network(auxiliary=False), last)


def test_the_trained_state_converts_back_and_forth_without_loss() -> None:
    """What serves is what was trained, bit by bit, and can be trained on."""
    preprocessing = Preprocessing(channels="RGB", mean=(0, 0, 0), resize="short", side=256)
    described = Manifest(
        architecture="googlenet", width=WIDTH, version="1", description="", licence="",
        classes=2, labels="labels.tsv", preprocessing=preprocessing,
    )  # fmt: skip
    student = pupil(network())
    student.step(batch(), 0, 0)
    trained = student.weights()
    served = weights.Model("x", described, (), "", trained).network()
    assert set(trained) - set(served.state_dict()) == {n for n in trained if n.startswith("aux_")}
    again = weights.build(described, auxiliary=True)
    missing, unexpected = again.load_state_dict(served.state_dict(), strict=False)
    assert all(name.startswith("aux_") for name in missing)
    assert not unexpected
    for name, value in again.state_dict().items():
        if not name.startswith("aux_"):
            assert torch.equal(value, trained[name])
    logits = served(Plain()(batch().pixels))
    torch.testing.assert_close(logits, student.logits(batch()))


def test_the_number_format_is_the_chosen_or_what_the_device_has_units_for() -> None:
    has_units = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    for precision, dtype in {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "auto": torch.bfloat16 if has_units else torch.float32,
    }.items():
        assert learner.number_format(precision, torch.device("cpu")) == dtype
    with pytest.raises(ModelError, match="int8 cannot be trained in"):
        learner.number_format("int8", torch.device("cpu"))


def test_half_precision_learns_about_the_same() -> None:
    exact, half = (
        Learner(network(), Plain(), Recipe(0.002, 0, 0.9, 0), dtype, SINGLE)
        for dtype in (torch.float32, torch.bfloat16)
    )
    losses = [[student.step(batch(), 0, step) for step in range(3)] for student in (exact, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert all(value.dtype == torch.float32 for value in half.weights().values())
    assert math.isfinite(losses[1][-1])
