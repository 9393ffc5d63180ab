"""The OpenVINO executor: batches, preprocessing, memory and number formats."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import small
import torch
from batches import batch, cuts, expected_views, noise, plain, whole
from conftest import IF_X86, ROOT
from PIL import Image
from small import Colours, Toy, softmax, toy
from torch import nn

from service import cpu_info
from service.engine import batch_assembly, openvino_engine, openvino_executor
from service.engine.executor import DeviceExecutor
from service.engine.openvino_executor import Compiled
from service.engine.weights import Model
from service.errors import ModelError, OutOfMemory
from service.imaging import crops
from service.imaging.crops import CROP, DENSE
from service.models.ensemble import Probabilities
from service.models.store import Store
from service.scheduling.types import Slice
from service.settings import Settings

NAME = "bvlc_googlenet"
IF_BFLOAT16 = pytest.mark.skipif(
    not openvino_executor.has_bfloat16(), reason="this CPU has no instructions for bfloat16"
)


def executor(*models: Model, precision: str = "float32") -> DeviceExecutor:
    """Compile models without maps for one thread."""
    return openvino_executor.executors(
        [Compiled(small.converted(model), precision, 1) for model in models]
    )[0]


@pytest.fixture(scope="module")
def real(real_store: Store) -> DeviceExecutor:
    """The real weights in float32, on two threads."""
    model = openvino_engine.read(real_store, NAME, "float32")
    return openvino_executor.executors([Compiled(model, "float32", 2)])[0]


# Rows.


@pytest.mark.parametrize("name", crops.NAMES)
def test_rows_are_the_views_of_their_slices_and_then_zeros(name: str) -> None:
    one, other = cuts(noise(1), name), cuts(noise(2), name)
    slices = [Slice(one, 1, len(one.plan.views)), Slice(other, 0, 1)]
    made = batch_assembly.assemble(batch(*slices, size=200))
    expected = [view for part in slices for view in expected_views(part)]
    side = DENSE if name == "dense" else CROP
    assert (made.dtype, made.shape) == (np.uint8, (200, side, side, 3))
    if expected:
        assert np.array_equal(made[: len(expected)], np.stack(expected))
    assert not made[len(expected) :].any()


def test_split_slices_have_all_144_views() -> None:
    payload = cuts(noise(4, 320, 256), "paper")
    pieces = [
        batch_assembly.assemble(batch(Slice(payload, start, stop)))
        for start, stop in pairwise([0, 1, 7, 72, 73, 101, 144])
    ]
    assert np.array_equal(np.concatenate(pieces), np.stack(expected_views(whole(payload))))


def test_pixels_and_tensors_share_a_batch_in_float32() -> None:
    pixels = cuts(noise(8), "ten")
    view = np.random.default_rng(9).normal(100, 90, (CROP, CROP, 3)).astype(np.float32)
    made = batch_assembly.assemble(batch(Slice(pixels, 1, 3), whole(plain(view))))
    assert made.dtype == np.float32
    assert np.array_equal(made[2], view)
    assert np.array_equal(made[:2], np.stack(expected_views(whole(pixels)))[1:3])


def test_sums_are_by_slice_without_padding() -> None:
    payload = cuts(noise(5), "ten")
    given = np.arange(12, dtype=np.float32).reshape(6, 2)
    one, three = batch_assembly.results([given], [Slice(payload, 0, 1), Slice(payload, 4, 7)])
    assert one.tolist() == [0, 1]
    assert three.tolist() == [2 + 4 + 6, 3 + 5 + 7]


def test_many_rows_are_summed_up_exactly() -> None:
    """In float32 adding a small probability to a large sum would round it away."""
    given = np.full((4096, 1), 1e-8, np.float32)
    given[0] = 1
    (summed,) = batch_assembly.results([given], [Slice(cuts(noise(5), "ten"), 0, 4096)])
    assert summed == pytest.approx([1 + 4095e-8], abs=1e-9)


# Preprocessing, on a network with simple arithmetic.


def of_colour(
    run: DeviceExecutor, colour: Sequence[float], kind: type[np.generic]
) -> Probabilities:
    """Run two rows, of which the first is in one colour, RGB."""
    pixels = np.broadcast_to(np.array(colour, kind), (CROP, CROP, 3))
    parts = [whole(plain(one)) for one in (pixels, np.zeros_like(pixels))]
    first, second = run.run(batch(*parts))
    assert np.abs(np.subtract(first, second)).max() > 0.01
    assert isinstance(first, np.ndarray)
    return first


RGB_WITH_SCALE = small.preprocessed(
    toy(), channels="RGB", mean=(100.0, 110.0, 120.0), scale=(0.5, 1.0, 2.0)
)


@pytest.mark.parametrize(
    ("model", "colour", "preprocessed", "kinds"),
    [
        # Channels are swapped before the mean is subtracted:
        (toy(), (130, 125, 90), (90 - 104, 125 - 117, 130 - 123), (np.uint8, np.float32)),
        (RGB_WITH_SCALE, (104, 113, 119), (4 * 0.5, 3, -1 * 2), (np.uint8, np.float32)),
        # A tensor's values may be fractional and out of range:
        (
            toy(),
            (130.125, 300.5, -30.25),
            (-30.25 - 104, 300.5 - 117, 130.125 - 123),
            (np.float32,),
        ),
        # A temperature applies to its own weights only:
        (
            small.calibrated(toy(), 2.5, "0" * 64),
            (130, 125, 90),
            (-14 / 2.5, 8 / 2.5, 7 / 2.5),
            (np.uint8,),
        ),
        (small.calibrated(toy(), 2.5, "1" * 64), (130, 125, 90), (-14, 8, 7), (np.uint8,)),
    ],
    ids=["BGR", "RGB with a scale", "tensor", "temperature", "temperature of other weights"],
)
def test_preprocessing_and_temperature_of_the_manifest(
    model: Model,
    colour: Sequence[float],
    preprocessed: Sequence[float],
    kinds: Sequence[type[np.generic]],
) -> None:
    for kind in kinds:
        result = of_colour(executor(model), colour, kind)
        assert result == pytest.approx(softmax(0.1 * np.array(preprocessed)), abs=1e-6)


def test_members_run_their_own_rows() -> None:
    flat = small.preprocessed(toy(), scale=(0.0001, 0.0001, 0.0001))
    run = executor(toy(), flat).run
    asked = whole(plain(np.full((CROP, CROP, 3), (0, 100, 250), np.uint8)))
    (sharp,), (even,) = (run(batch(asked, member=number)) for number in (0, 1))
    assert np.ptp(sharp) > 0.5
    assert even == pytest.approx([1 / 3] * 3, abs=1e-3)


# Batches, on the real weights.


@pytest.mark.parametrize("rows", [1, 3, 13])
def test_batch_results_equal_single_rows(
    rows: int, real: DeviceExecutor, photos: Sequence[Image.Image]
) -> None:
    """Mirrored views among them."""
    payloads = [cuts(photo, "ten") for photo in photos[:5]]
    slices = [
        Slice(payloads[number % len(payloads)], number % 10, number % 10 + 1)
        for number in range(rows)
    ]
    together = real.run(batch(*slices))
    assert len(together) == rows
    for part, found in zip(slices, together, strict=True):
        assert found == pytest.approx(real.run(batch(part))[0], abs=1e-5)
        mirrored = plain(np.ascontiguousarray(expected_views(part)[0]))
        assert found == pytest.approx(real.run(batch(whole(mirrored)))[0], abs=1e-5)


def test_slices_of_several_rows_get_their_sums(
    real: DeviceExecutor, photos: Sequence[Image.Image]
) -> None:
    one, two, three = (cuts(photo, "ten") for photo in photos[:3])
    parts = [Slice(two, 4, 5), Slice(one, 0, 3), Slice(three, 8, 10)]
    for part, found in zip(parts, real.run(batch(*parts)), strict=True):
        rows = [Slice(part.payload, at, at + 1) for at in range(part.start, part.stop)]
        assert found == pytest.approx(
            np.sum([real.run(batch(row))[0] for row in rows], 0), abs=1e-5
        )
        assert np.sum(found) == pytest.approx(part.rows, abs=1e-4)


def test_results_are_not_overwritten_by_the_next_batch(
    real: DeviceExecutor, photos: Sequence[Image.Image]
) -> None:
    one, other = (batch(whole(cuts(photo, "single"))) for photo in photos[:2])
    (first,) = real.run(one)
    before = np.copy(first)
    assert np.abs(before - real.run(other)[0]).max() > 0.1
    assert np.array_equal(first, before)


def test_one_executor_runs_all_sizes_and_types(
    real: DeviceExecutor, photos: Sequence[Image.Image]
) -> None:
    payloads = [cuts(photos[0], name) for name in ("single", "dense")]
    floats = replace(payloads[0], canvases=tuple(map(np.float32, payloads[0].canvases)))
    first = [real.run(batch(whole(one)))[0] for one in (*payloads, floats)]
    again = [real.run(batch(whole(one)))[0] for one in (*payloads, floats)]
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert first[2] == pytest.approx(first[0], abs=1e-5)


def test_executors_run_batches_at_the_same_time() -> None:
    one, other = openvino_executor.executors([Compiled(small.converted(toy()), "float32", 2)])
    asked = [batch(*(whole(cuts(noise(seed), "single")),) * (1 + seed)) for seed in range(8)]
    expected = [np.stack([*one.run(each)]) for each in asked]
    with ThreadPoolExecutor(2) as threads:
        turns = [
            threads.submit(lambda run: [*map(run, 4 * asked)], each.run) for each in (one, other)
        ]
        for turn in turns:
            for results, rows in zip(turn.result(), 4 * expected, strict=True):
                assert np.stack([*results]) == pytest.approx(rows, abs=1e-6)


# Memory.


def test_out_of_memory_error(real: DeviceExecutor) -> None:
    part = whole(cuts(noise(0), "single"))
    with pytest.raises(OutOfMemory, match="there is no memory for this batch"):
        real.run(batch(part, size=10**12))
    assert real.run(batch(part))[0].sum() == pytest.approx(1, abs=1e-5)  # type: ignore[union-attr]  # no map


class OfOneSize(Toy):
    """A model that takes views of 224 pixels only."""

    sides = (CROP,)


def test_other_errors_are_not_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="incompatible"):
        executor(toy(OfOneSize)).run(batch(whole(cuts(noise(0), "dense"))))


# Number formats.


def placed(models: Sequence[openvino_executor.Model], precision: str) -> str:
    """Return the number format that an engine chooses."""
    chosen = Settings(precision=precision, max_batch=1)  # type: ignore[arg-type]  # checked there
    return openvino_engine.place(models, chosen, 1).precision


@IF_BFLOAT16
def test_bfloat16_is_chosen_and_agrees_on_photos(
    real_store: Store, real: DeviceExecutor, photos: Sequence[Image.Image]
) -> None:
    model = openvino_engine.read(real_store, NAME, "auto")
    assert placed([model], "auto") == "bfloat16"
    half = openvino_executor.executors([Compiled(model, "bfloat16", 1)])[0]
    asked = batch(*(whole(cuts(photo, "single")) for photo in photos[:5]))
    exact, rounded = (np.stack([*run.run(asked)]) for run in (real, half))
    assert exact.argmax(1).tolist() == rounded.argmax(1).tolist()
    assert 0 < np.abs(exact - rounded).max() < 0.05


class Fragile(Colours):
    """A network with small differences of large values, which bfloat16 rounds away."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.back = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for conv, offset in ((self.large, 30_000.0), (self.back, -30_000.0)):
            nn.init.dirac_(conv.weight)
            nn.init.constant_(conv.bias, offset)  # type: ignore[arg-type]  # it has one

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102 - as `Colours`
        return super().forward(self.back(torch.relu(self.large(x))))


class Delicate(Toy):
    """Its model."""

    def network(self) -> nn.Module:
        """Build it."""
        return Fragile().eval()


def delicate() -> Model:
    """Make it; measurements are cached by the weights' SHA-256."""
    return replace(toy(Delicate), sha256="1" * 64)


@IF_BFLOAT16
def test_a_format_in_which_a_member_disagrees_is_used_only_if_requested() -> None:
    robust, fragile = small.converted(toy()), small.converted(delicate())
    assert placed([robust], "auto") == "bfloat16"
    assert placed([robust, fragile], "auto") == "float32"
    assert placed([robust, fragile], "bfloat16") == "bfloat16"


def test_float16_is_for_gpus() -> None:
    with pytest.raises(ModelError, match="float16 is for GPUs; on a CPU use bfloat16, float32"):
        placed([small.converted(toy())], "float16")


def test_int8_needs_a_quantized_model(real_store: Store) -> None:
    with pytest.raises(ModelError, match=f"models quantize {NAME} --calibrate DIR"):
        openvino_engine.read(real_store, NAME, "int8")


# Other CPUs.

LOAD = """
import os, sys
from pathlib import Path
from service.scheduling.cost_model import Key
from service.engine import engine, profiling
from service.errors import ModelError
from service.settings import Settings

def busy():  # ticks of the processor by thread
    tasks = Path("/proc/self/task")
    stats = {path.name: path.joinpath("stat").read_text() for path in tasks.iterdir()}
    fields = {name: stat.rpartition(")")[2].split() for name, stat in stats.items()}
    return {name: int(words[11]) + int(words[12]) for name, words in fields.items()}

store, precision, cores, cpus = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(cpus)])
try:
    loaded = engine.load(Settings(model="bvlc_googlenet", model_store=Path(store), device="cpu",
                                  precision=precision, cpu_threads=int(cores), max_batch=4))
except ModelError as error:
    sys.exit(str(error))
before = busy()
while sum(busy().values()) < sum(before.values()) + 100:
    loaded.executors[0].run(profiling.blank(Key(0, 224), 4))
after = busy()
threads = sum(ticks - before.get(name, 0) > 10 for name, ticks in after.items())
print(loaded.ensemble.precision, threads, "torch" in sys.modules)
"""


def load(
    store: Store, precision: str, *, cores: int = 0, cpus: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Load the real weights where only so many CPUs may be used.

    Prints the number format, how many threads work, and whether PyTorch was imported.
    """
    return subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", LOAD, str(store.root), precision, str(cores), str(cpus)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what each thread does")
@pytest.mark.parametrize(("cores", "cpus", "threads"), [(0, 1, 1), (1, 2, 1), (0, 2, 2)])
def test_threads_equal_available_cores(
    cores: int, cpus: int, threads: int, real_store: Store
) -> None:
    if cpu_info.available() < cpus:
        pytest.skip(f"this machine has fewer than {cpus} CPUs")
    done = load(real_store, "float32", cores=cores, cpus=cpus)
    assert done.stdout.split() == ["float32", str(threads), "False"], done.stderr


@IF_X86
def test_a_cpu_without_instructions_for_bfloat16_serves_float32(real_store: Store) -> None:
    done = load(real_store, "auto", ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.stdout.split()[0] == "float32", done.stderr


@IF_X86
def test_bfloat16_without_instructions_is_refused(real_store: Store) -> None:
    done = load(real_store, "bfloat16", ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 1
    assert done.stderr.startswith("this CPU does not compute bvlc_googlenet in bfloat16: ")
    assert done.stderr.count("\n") == 1


SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from service.engine import engine
from service.settings import Settings
for _ in range(2):
    chosen = Settings(model="digits", device="cpu", precision="float32", cpu_threads=1)
    engine.load(chosen.model_copy(update={"max_batch": 1}))
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_signal_after_engines_are_freed() -> None:
    """OpenVINO sets an alternate signal stack and may leave a freed one set."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", SIGNALLED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n")
