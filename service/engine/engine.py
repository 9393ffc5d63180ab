"""The engine: models from the store on their devices, warmed, timed and ready for batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util

from service.engine import gpu_info, openvino_engine, prepared_image
from service.engine.executor import DeviceExecutor, Model, Placed
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, NotConverted
from service.imaging import image_decoder
from service.imaging.image_decoder import Bounds, ImageInput
from service.models import store
from service.models.ensemble import Ensemble, Member
from service.models.manifest import Preprocessing
from service.models.store import Store
from service.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """An ensemble, and what decodes images and runs batches for it in the caller's threads."""

    ensemble: Ensemble
    executors: tuple[DeviceExecutor, ...]
    preprocessing: Preprocessing
    """What a tensor has been through that comes instead of an image: the first member's."""

    def prepare(
        self, image: ImageInput, views: str, bounds: Bounds, target: int = 0
    ) -> list[PreparedImage]:
        """Decode an image for the views so named; gives what each member takes.

        Raises what `service.imaging.image_decoder.decode` does, or `InvalidParameter` for a tensor
        that is to have other views than the one that it is.
        """
        plans = self.ensemble.plans(views)
        if image_decoder.is_view(image):
            return prepared_image.given(prepared_image.unscaled(image, self.preprocessing), plans)
        return prepared_image.prepare(image, plans, bounds, target)


def load(settings: Settings) -> Engine:
    """Read the models from the store and put them on the device: blocking, seconds long.

    Raises `ModelError` for a model that is not there, when the models' labels differ, or for a
    device or number format that is not there.
    """
    placed = _place(store.locate(settings.model_store), settings)
    _check_labels(placed.models)
    first = placed.models[0]
    ensemble = Ensemble(
        members=tuple(map(_member, placed.models)),
        labels=first.labels,
        costs=placed.costs,
        device=placed.device,
        precision=placed.precision,
        warmup_seconds=placed.warmup_seconds,
    )
    return Engine(ensemble, placed.executors, first.manifest.preprocessing)


def _place(where: Store, settings: Settings) -> Placed:
    if _by_torch(settings.device):
        return _torch(where, settings)
    try:
        return openvino_engine.load(where, settings)
    except NotConverted as error:
        if settings.precision == "int8" or not _has_torch():
            raise
        logger.warning("%s; PyTorch computes it", error)
        return _torch(where, settings.model_copy(update={"device": "torch-cpu"}))


def _torch(where: Store, settings: Settings) -> Placed:
    if not _has_torch():
        raise ModelError(
            f"device {settings.device!r} needs PyTorch: pip install 'googlenet-service[torch]'"
        )
    from service.engine import torch_engine  # noqa: PLC0415 - imported only where it computes

    return torch_engine.load(where, settings)


def _by_torch(device: str) -> bool:
    """Tell whether PyTorch computes on a device: on GPUs; `auto` means those that it can use."""
    if device != "auto":
        return device != "cpu"
    if not (gpu_info.count() and _has_torch()):
        return False
    from service.engine import torch_engine  # noqa: PLC0415 - as above

    return torch_engine.gpus() > 0


def _has_torch() -> bool:
    return util.find_spec("torch") is not None


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
