"""The lanes of the devices: how many, of how many threads, and what each batch size costs.

A GPU has two lanes, so that one batch is copied while the other is computed. A CPU has as many
as run most rows a second, each with its share of the cores: threads that share a batch wait for
each other after every layer, and threads with a batch each do not. One more lane has all cores,
for the request that comes alone.
"""

import io
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from service import images, processors, rows, runtime, views
from service.activation import Activations
from service.costs import Costs, Key
from service.cuts import Cuts
from service.ensemble import Result
from service.errors import OutOfMemory
from service.explanation import Activation
from service.forward import Forward
from service.packed import Shape
from service.views import Canvas, Plan, Resize, View
from service.weights import Model
from service.work import Batch, Slice

logger = logging.getLogger(__name__)

# Of the best throughput, what is as good: one measurement says no more where others use the
# machine, too.
_AS_GOOD = 0.85
_TURNS = 3  # in which lanes are timed, so that what else the machine does meets both


@dataclass(frozen=True, slots=True)
class ClassifyingLane:
    """A way to run batches, blocking; see `service.work.Lane` and `service.ensemble.Result`."""

    run: Callable[[Batch[Cuts]], Sequence[Result]]
    device: int = 0
    alone: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """How a CPU's cores are shared out: so many lanes with so many threads each."""

    lanes: int
    threads: int


def layouts(cores: int, executors: int) -> list[Layout]:
    """List the ways to share out the cores: 1, 2, 4, ... lanes, or as many as `executors`."""
    powers = [2**power for power in range(cores.bit_length())]
    numbers = [min(executors, cores)] if executors else sorted({*powers, cores})
    return [Layout(number, cores // number) for number in numbers]


def best(rates: Mapping[Layout, float]) -> Layout:
    """Choose by rows a second; among equals the most lanes.

    A lane of one thread loses nothing while its neighbour's core decodes pictures.
    """
    enough = _AS_GOOD * max(rates.values())
    return max((one for one in rates if rates[one] >= enough), key=lambda one: one.lanes)


@dataclass(frozen=True, slots=True)
class _Member:
    """A model on a device: what computes its probabilities, and its maps if it has any."""

    forward: Forward
    maps: Activations | None


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes lanes for models, in one number format and with these batch sizes."""

    models: Sequence[Model]
    dtype: torch.dtype
    sizes: Sequence[int]

    def on_gpus(self, devices: Sequence[torch.device]) -> tuple[ClassifyingLane, ...]:
        """Make two lanes for each device."""
        lanes = []
        for number, device in enumerate(devices):
            members = self._members(device, self.sizes)
            lanes += [_lane(members, device, number) for _ in range(2)]
        return tuple(lanes)

    def on_cpu(self, cores: int, executors: int) -> tuple[ClassifyingLane, ...]:
        """Make so many lanes for the CPU, or as many as are quickest if `executors` is 0."""
        layout = self._choose(layouts(cores, executors))
        beside = self._beside(layout, self.sizes)
        return (*beside, *self._alone(cores, beside))

    def _choose(self, choices: Sequence[Layout]) -> Layout:
        if len(choices) == 1:
            return choices[0]
        batch = _blank(Key(0, views.CROP), max(self.sizes))
        rates = {}
        for layout in choices:
            lanes = self._beside(layout, [batch.size], explain=False)
            seconds = _beside_decoding(lanes, batch)
            rates[layout] = layout.lanes * batch.size / seconds
            logger.info("%s: %.0f pictures a second", layout, rates[layout])
        return best(rates)

    def _beside(
        self, layout: Layout, sizes: Sequence[int], *, explain: bool = True
    ) -> list[ClassifyingLane]:
        """Make lanes that run side by side."""
        cpu = torch.device("cpu")
        members = self._members(cpu, sizes, layout.threads, explain=explain)
        return [_lane(members, cpu, number, layout.threads) for number in range(layout.lanes)]

    def _alone(self, cores: int, beside: Sequence[ClassifyingLane]) -> list[ClassifyingLane]:
        """Make a lane of all cores, if it is quicker than one of those that share them."""
        sizes = [size for size in self.sizes if size < len(beside)]
        if not sizes:
            return []
        cpu = torch.device("cpu")
        members = self._members(cpu, sizes, cores)
        alone = _lane(members, cpu, len(beside), cores, alone=max(sizes))
        lone, shared = _alone_seconds(alone, beside[0])
        logger.info("a request alone: %.1f ms on all cores, else %.1f", 1e3 * lone, 1e3 * shared)
        return [alone] if lone < shared else []

    def _members(
        self, device: torch.device, sizes: Sequence[int], threads: int = 0, *, explain: bool = True
    ) -> list[_Member]:
        def made(model: Model) -> _Member:
            lone = [Shape(1, side) for side in model.sides]
            maps = Activations(model, device, lone) if explain and model.explains else None
            shapes = [Shape(rows, side) for rows in sizes for side in model.sides]
            return _Member(Forward(model, device, self.dtype, shapes), maps)

        return runtime.compute(lambda: [*map(made, self.models)], threads)


def _lane(
    members: Sequence[_Member],
    device: torch.device,
    number: int,
    threads: int = 0,
    alone: int = 0,
) -> ClassifyingLane:
    forwards = runtime.forwards(device, threads)
    networks = [runtime.recorded(member.forward, device) for member in members]

    def run(batch: Batch[Cuts]) -> Sequence[Result]:
        with runtime.memory(), forwards():
            pixels = rows.cut(batch, device)
            if batch.key.maps:
                (part,) = batch.slices
                return [_explained(members[batch.key.member].maps, pixels, part)]
            # The copy to the host waits for the device.
            probabilities = networks[batch.key.member](pixels).cpu().numpy()
        return rows.sums(probabilities, batch.slices)

    return ClassifyingLane(run, number, alone)


def _explained(maps: Activations | None, pixels: torch.Tensor, part: Slice[Cuts]) -> Activation:
    """Give the map of the one view that `part` is, (1, side, side, 3) uint8."""
    assert maps is not None  # noqa: S101 - there are costs for its key; tells mypy
    cuts, view = part.payload, part.payload.plan.views[part.start]
    target = torch.tensor([cuts.target], device=pixels.device)
    (grid,), (logit,), (bias,) = (found.cpu().numpy() for found in maps(pixels, target))
    upright = np.fliplr(grid) if view.mirror else grid
    return Activation(upright.copy(), float(logit), float(bias), cuts.plan.part(view, cuts.size))


def wanted(models: Sequence[Model], sizes: Sequence[int]) -> dict[Key, Sequence[int]]:
    """Give the batch sizes of every key; maps are made one at a time."""
    keys: dict[Key, Sequence[int]] = {}
    for member, model in enumerate(models):
        keys |= {Key(member, side): sizes for side in model.sides}
        if model.explains:
            keys |= {Key(member, side, maps=True): (1,) for side in model.sides}
    return keys


def costs(lanes: Sequence[ClassifyingLane], keys: Mapping[Key, Sequence[int]]) -> Costs:
    """Run every size of every key on every lane, and time it as it is under load.

    Sizes for which a device has no memory are left out; raises `OutOfMemory` if none is left.
    """
    return Costs({key: dict(_timed(lanes, key, sizes)) for key, sizes in keys.items()})


def _timed(
    lanes: Sequence[ClassifyingLane], key: Key, sizes: Sequence[int]
) -> Iterator[tuple[int, float]]:
    for size in sizes:
        try:
            yield size, _seconds(lanes, key, size)
        except OutOfMemory:
            if size == sizes[0]:
                raise
            logger.warning("no memory for %d views of %d pixels at once", size, key.side)
            return
        for lane in lanes:
            if size <= lane.alone:
                runtime.compute(partial(lane.run, _blank(key, size)))


def _alone_seconds(*lanes: ClassifyingLane) -> list[float]:
    """Time a row that is all there is on each of the lanes, in turn."""
    batch = _blank(Key(0, views.CROP), 1)
    runs = [partial(runtime.measure, partial(lane.run, batch)) for lane in lanes]
    turns = [[runtime.compute(run) for run in runs] for _ in range(_TURNS)]
    return [min(seconds) for seconds in zip(*turns, strict=True)]


def _seconds(lanes: Sequence[ClassifyingLane], key: Key, size: int) -> float:
    """Time a batch with all devices at it, one lane of each at a time; the slowest counts."""
    batch = _blank(key, size)
    by_device = defaultdict(list)
    for lane in lanes:
        if not lane.alone:
            by_device[lane.device].append(lane)
    return max(_together(turn, batch) for turn in zip(*by_device.values(), strict=True))


def _together(lanes: Sequence[ClassifyingLane], batch: Batch[Cuts]) -> float:
    with ThreadPoolExecutor(len(lanes)) as threads:
        return runtime.measure(lambda: list(threads.map(lambda lane: lane.run(batch), lanes)))


def _beside_decoding(lanes: Sequence[ClassifyingLane], batch: Batch[Cuts]) -> float:
    """Time a batch on every lane while the next one's pictures are decoded, as under load."""
    decode = partial(images.decode, sample(), max_pixels=sys.maxsize)
    with (
        ThreadPoolExecutor(len(lanes)) as computing,
        ThreadPoolExecutor(processors.available()) as decoding,
    ):

        def run(lane: ClassifyingLane) -> None:
            pictures = [decoding.submit(decode) for _ in range(batch.size)]
            lane.run(batch)
            wait(pictures)

        return runtime.measure(lambda: list(computing.map(run, lanes)))


def sample() -> bytes:
    """Make a picture that takes about as long to decode as a photo of its size."""
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return file.getvalue()


def _blank(key: Key, size: int) -> Batch[Cuts]:
    pixels = np.zeros((key.side, key.side, 3), np.uint8)
    canvas = Canvas(Resize("warp", key.side), key.side)
    plan = Plan((canvas,), (View(0, 0, 0, key.side),))
    return Batch(key, size, (Slice(Cuts(plan, (pixels,)), 0, 1),) * size, "full")
