"""Members and views to rankings: what is served, and the averages it answers with.

Probabilities, not logits, are averaged: over a picture's views, then over the members
(section 7 of the paper).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from service import forward, lanes, runtime, views
from service.errors import ModelError
from service.forward import Probabilities
from service.lanes import ClassifyingLane
from service.manifest import Label
from service.policy import Costs, Key
from service.store import Model
from service.views import Plan, Resize
from service.work import Demand


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
    lanes: tuple[ClassifyingLane, ...]
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
            reduce(np.add, parts) / len(plan.views)
            for parts, plan in zip(results, plans, strict=True)
        ]
        mean = reduce(np.add, by_member) / len(by_member)
        best = _most(mean, top_k)
        return tuple(
            Prediction(self.labels[i].name, self.labels[i].wnid, i, float(mean[i])) for i in best
        )


def _most(values: Probabilities, count: int) -> Sequence[int]:
    """Give the places of the largest values in order, the first place first of equals."""
    if count < len(values):
        least = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    order: list[int] = places[np.argsort(-values[places], kind="stable")][:count].tolist()
    return order


def load(  # noqa: PLR0913 - each is a setting
    models: Sequence[Model],
    *,
    device: str,
    precision: str,
    max_batch: int,
    cores: int = 0,
    executors: int = 0,
) -> Ensemble:
    """Put models on their devices, warm up every batch size and time it.

    Each is the setting of its name (`service.settings`). Raises `ModelError` when the models'
    labels differ or there is no such device.
    """
    _check_labels(models)
    runtime.keep_memory()
    devices = runtime.devices(device, torch.cuda.device_count())
    cores = cores or runtime.cores()
    formats = runtime.precisions(precision)
    dtype = runtime.compute(lambda: forward.quickest(models, devices[0], formats), cores)
    sizes = runtime.sizes(devices[0], max_batch)
    maker = lanes.Maker(models, dtype, sizes)
    on_cpu = devices[0].type == "cpu"
    made = maker.on_cpu(cores, executors) if on_cpu else maker.on_gpus(devices)
    started = time.perf_counter()
    costs = lanes.costs(made, len(models), sizes)
    return Ensemble(
        members=tuple(_member(model) for model in models),
        labels=models[0].labels,
        lanes=made,
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


def _member(model: Model) -> Member:
    described = model.manifest
    return Member(
        model.name,
        described.version,
        described.architecture,
        model.sha256,
        described.preprocessing.resized,
    )
