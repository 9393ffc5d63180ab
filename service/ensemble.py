"""Members and views to rankings: the blocking part that runs on a device.

Probabilities, not logits, are averaged: over a picture's views, then over the members
(section 7 of the paper).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service import runtime, views
from service.errors import ModelError
from service.manifest import Label
from service.packed import Shape
from service.policy import Costs, Key
from service.store import Model
from service.views import Pixels, Plan, Resize
from service.work import Batch, Demand, Lane, Slice

logger = logging.getLogger(__name__)

SIDES = (views.CROP, views.DENSE)  # of the views that any plan has

# How far a probability may be from float32's for a number format to be chosen by itself. On
# photos, formats within it agree on the first label (see `benchmarks/`).
AGREEMENT = 0.05

Probabilities = npt.NDArray[np.float64]  # (classes,)


@dataclass(frozen=True, slots=True)
class Cuts:
    """What a picture brings for one member: its canvases and the views to cut from them."""

    plan: Plan
    canvases: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """What is to be known about one of the averaged models."""

    name: str
    version: str
    architecture: str
    sha256: str
    resize: Resize


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and how probable it is; `index` is its place among the classes."""

    label: str
    wnid: str | None
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Models that are loaded, warmed and timed, and the lanes that run them."""

    members: tuple[Member, ...]
    labels: tuple[Label, ...]
    lanes: tuple[Lane[Cuts, Probabilities], ...]  # each gives the sum of a slice's rows
    costs: Costs
    device: str
    precision: str
    warmup_seconds: float

    @property
    def name(self) -> str:
        """The members' names, as `--model` takes them."""
        return ",".join(member.name for member in self.members)

    def plans(self, name: str) -> tuple[Plan, ...]:
        """Give each member's plan of the views called `name`."""
        return tuple(views.plan(name, member.resize) for member in self.members)

    def demands(self, plans: Sequence[Plan]) -> list[Demand]:
        """Say what one picture will bring: a job for each member."""
        return [
            Demand(Key(number, plan.side), len(plan.views), plan.nbytes)
            for number, plan in enumerate(plans)
        ]

    def rank(
        self, results: Sequence[Sequence[Probabilities]], plans: Sequence[Plan], top_k: int
    ) -> tuple[Prediction, ...]:
        """Average a picture's results, by member, and give the `top_k` most probable labels."""
        by_member = [
            np.sum(parts, axis=0) / len(plan.views)
            for parts, plan in zip(results, plans, strict=True)
        ]
        mean = np.mean(by_member, axis=0)
        best = np.argsort(-mean, kind="stable")[:top_k]
        return tuple(
            Prediction(self.labels[i].name, self.labels[i].wnid, int(i), float(mean[i]))
            for i in best
        )


class Forward(nn.Module):
    """A member on its device: uint8 views to probabilities.

    Takes (N, side, side, 3) uint8 RGB, gives (N, classes) float32.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        shapes: Sequence[Shape],
    ) -> None:
        super().__init__()
        preprocessing = model.manifest.preprocessing
        self.network = runtime.place(model.network(), device, dtype, shapes)
        self.dtype = dtype
        self.is_bgr = preprocessing.channels == "BGR"
        self.register_buffer("mean", torch.tensor(preprocessing.mean, device=device))
        self.register_buffer("scale", torch.tensor(preprocessing.scale, device=device))

    def forward(self, pixels: Tensor) -> Tensor:
        channels = pixels.flip(-1) if self.is_bgr else pixels
        x = ((channels.float() - self.mean) * self.scale).to(self.dtype)
        logits: Tensor = self.network(x.permute(0, 3, 1, 2))  # channels-last already
        return logits.float().softmax(1)


def load(models: Sequence[Model], *, device: str, precision: str, max_batch: int) -> Ensemble:
    """Put models on their devices, warm up every batch size and time it.

    Raises `ModelError` when the models' labels differ or there is no such device.
    """
    _check_labels(models)
    runtime.keep_memory()
    devices = runtime.devices(device, torch.cuda.device_count())
    dtype = _quickest(models, devices[0], runtime.precisions(precision))
    sizes = runtime.sizes(devices[0], max_batch)
    shapes = [Shape(rows, side) for rows in sizes for side in SIDES]
    lanes = tuple(
        lane
        for number, place in enumerate(devices)
        for lane in _lanes([Forward(m, place, dtype, shapes) for m in models], place, number)
    )
    started = time.perf_counter()
    costs = _measured(lanes, len(models), sizes)
    return Ensemble(
        members=tuple(_member(model) for model in models),
        labels=models[0].labels,
        lanes=lanes,
        costs=costs,
        device=",".join(str(place) for place in devices),
        precision=str(dtype).removeprefix("torch."),
        warmup_seconds=time.perf_counter() - started,
    )


def _check_labels(models: Sequence[Model]) -> None:
    first, *others = models
    for other in others:
        if other.labels != first.labels:
            raise ModelError(
                f"{first.name} and {other.name} have different labels and cannot be averaged"
            )


def _quickest(
    models: Sequence[Model], device: torch.device, dtypes: Sequence[torch.dtype]
) -> torch.dtype:
    """Choose the quickest number format on this device that agrees with float32 there."""
    if len(dtypes) == 1:
        return dtypes[0]
    probe = _probe().to(device)
    shapes = [Shape(*probe.shape[:2])]
    exact = [Forward(model, device, torch.float32, shapes) for model in models]
    seconds = {}
    with torch.inference_mode():
        wanted = [forward(probe) for forward in exact]
        for dtype in dtypes:
            exactly = dtype == torch.float32
            forwards = exact if exactly else [Forward(m, device, dtype, shapes) for m in models]
            pairs = zip(forwards, wanted, strict=True)
            apart = max(float((f(probe) - want).abs().max()) for f, want in pairs)
            if apart <= AGREEMENT:
                took = runtime.measure(lambda fs=forwards: [f(probe).cpu() for f in fs])  # type: ignore[misc]  # a lambda's default
                seconds[dtype] = took
                logger.info("%s: %.1f ms, at most %.4f from float32", dtype, 1e3 * took, apart)
    return min(seconds, key=seconds.__getitem__)


def _probe() -> Tensor:
    """Make pictures to compare number formats on: (8, 224, 224, 3) uint8, smooth and random."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((8, 3, 7, 7), generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size=views.CROP, mode="bilinear")
    return smooth.round().byte().permute(0, 2, 3, 1).contiguous()


def _member(model: Model) -> Member:
    described = model.manifest
    return Member(
        model.name,
        described.version,
        described.architecture,
        model.sha256,
        described.preprocessing.resized,
    )


def _lanes(
    members: Sequence[Forward], device: torch.device, number: int
) -> list[Lane[Cuts, Probabilities]]:
    # On a GPU one batch is copied while the other is computed.
    return [_lane(members, device, number) for _ in range(1 if device.type == "cpu" else 2)]


def _lane(
    members: Sequence[Forward], device: torch.device, number: int
) -> Lane[Cuts, Probabilities]:
    forward = runtime.forwards(device)

    def run(batch: Batch[Cuts]) -> list[Probabilities]:
        with forward():
            rows = cut(batch, device)
            # The copy to the host waits for the device.
            probabilities = members[batch.key.member](rows).cpu().numpy()
        return _sums(probabilities, batch.slices)

    return Lane(run, number)


def cut(batch: Batch[Cuts], device: torch.device) -> Tensor:
    """Cut a batch's views on its device: (size, side, side, 3) uint8, zeros for padding."""
    side = batch.key.side
    rows = torch.zeros((batch.size, side, side, 3), dtype=torch.uint8, device=device)
    at = 0
    for part in batch.slices:
        wanted = part.payload.plan.views[part.start : part.stop]
        numbers = sorted({view.canvas for view in wanted})
        tensors = [torch.from_numpy(part.payload.canvases[number]) for number in numbers]
        canvases = dict(zip(numbers, runtime.to_device(tensors, device), strict=True))
        for view in wanted:
            square = canvases[view.canvas][view.top : view.top + side, view.left : view.left + side]
            rows[at] = square.flip(1) if view.mirror else square
            at += 1
    return rows


def _sums(
    probabilities: npt.NDArray[np.float32], slices: Sequence[Slice[Cuts]]
) -> list[Probabilities]:
    ends = np.cumsum([part.rows for part in slices])
    return [
        probabilities[end - part.rows : end].sum(axis=0, dtype=np.float64)
        for end, part in zip(ends, slices, strict=True)
    ]


def _measured(
    lanes: Sequence[Lane[Cuts, Probabilities]], members: int, sizes: Sequence[int]
) -> Costs:
    """Run every size of every key on every lane; a key costs what its slowest lane takes."""
    seconds: Mapping[Key, dict[int, float]] = {
        Key(member, side): {} for member in range(members) for side in SIDES
    }
    for key, buckets in seconds.items():
        blank = np.zeros((key.side, key.side, 3), np.uint8)
        plan = Plan((), (views.View(0, 0, 0, key.side),))
        for size in sizes:
            slices = (Slice(Cuts(plan, (blank,)), 0, 1),) * size
            batch = Batch(key, size, slices, "full")
            buckets[size] = max(runtime.measure(lambda b=batch, r=lane.run: r(b)) for lane in lanes)  # type: ignore[misc]  # a lambda's defaults
    return Costs(seconds)
