"""The engine: models from the store on their devices, warmed, timed and ready to be asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from service import cuts, forward, images, lanes, processors, runtime, store, weights
from service.cuts import Cuts
from service.ensemble import Ensemble, Member
from service.errors import ModelError
from service.images import Bounds, Picture
from service.lanes import ClassifyingLane
from service.manifest import Preprocessing
from service.settings import Settings
from service.weights import Model


@dataclass(frozen=True, slots=True)
class Engine:
    """An ensemble and what does its work, in the threads of whoever calls."""

    ensemble: Ensemble
    lanes: tuple[ClassifyingLane, ...]
    preprocessing: Preprocessing
    """What a tensor has been through that comes instead of a picture: the first member's."""

    def prepare(self, picture: Picture, views: str, bounds: Bounds, target: int = 0) -> list[Cuts]:
        """Decode a picture for the views so named; gives what each member takes.

        Raises what `service.images.decode` does, or `InvalidParameter` for a tensor that is to
        have other views than the one that it is.
        """
        plans = self.ensemble.plans(views)
        if images.is_view(picture):
            return cuts.given(cuts.unscaled(picture, self.preprocessing), plans)
        return cuts.prepare(picture, plans, bounds, target)


def load(settings: Settings) -> Engine:
    """Read the models from the store and put them on the device: blocking, seconds long.

    Raises `ModelError` for a model that is not there, or what `place` does.
    """
    where = store.locate(settings.store)
    models = runtime.compute(lambda: [weights.load(where, name) for name in settings.models])
    return place(
        models,
        device=settings.device,
        precision=settings.precision,
        max_batch=settings.max_batch,
        cores=settings.cores,
        executors=settings.executors,
    )


def place(  # noqa: PLR0913 - each is a setting
    models: Sequence[Model],
    *,
    device: str,
    precision: str,
    max_batch: int,
    cores: int = 0,
    executors: int = 0,
) -> Engine:
    """Put models on their devices, warm up every batch size and time it.

    Each is the setting of its name (`service.settings`). Raises `ModelError` when the models'
    labels differ or there is no such device.
    """
    _check_labels(models)
    devices = runtime.devices(device, torch.cuda.device_count())
    cores = cores or processors.available()
    formats = runtime.precisions(precision)
    dtype = runtime.compute(lambda: forward.quickest(models, devices[0], formats), cores)
    sizes = runtime.sizes(devices[0], max_batch)
    maker = lanes.Maker(models, dtype, sizes)
    on_cpu = devices[0].type == "cpu"
    made = maker.on_cpu(cores, executors) if on_cpu else maker.on_gpus(devices)
    started = time.perf_counter()
    costs = lanes.costs(made, lanes.wanted(models, sizes))
    loaded = Ensemble(
        members=tuple(_member(model) for model in models),
        labels=models[0].labels,
        costs=costs,
        device=",".join(str(place) for place in devices),
        precision=runtime.name(dtype),
        warmup_seconds=time.perf_counter() - started,
    )
    return Engine(loaded, made, models[0].manifest.preprocessing)


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
        described.preprocessing.mirror,
        described.notice,
        explains=model.explains,
        sides=model.sides,
    )
