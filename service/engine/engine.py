"""The engine: models on their devices, warmed up, measured and ready to run batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.engine import gpu_info, openvino_engine, prepared_image
from service.engine.executor import DeviceExecutor, Model, Placed
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, NotConverted
from service.imaging import image_decoder
from service.imaging.image_decoder import Bounds, ImageInput
from service.models import pytorch, store
from service.models.ensemble import Ensemble, Member
from service.models.manifest import Preprocessing
from service.models.store import Store
from service.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """An ensemble with its executors; decodes and computes in the calling threads."""

    ensemble: Ensemble
    executors: tuple[DeviceExecutor, ...]
    preprocessing: Preprocessing
    """The first member's, which tensors sent instead of images have been through."""

    def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> list[PreparedImage]:
        """Decode an image for a view plan; one prepared image per member.

        Raises what `service.imaging.image_decoder.decode` does, or `InvalidParameter` for a tensor
        with a plan of several views.
        """
        plans = self.ensemble.plans(views)
        if image_decoder.is_view(image):
            view = prepared_image.unscaled(image, self.preprocessing)
            prepared = prepared_image.given(view, plans)
        else:
            prepared = prepared_image.prepare(image, plans, bounds, target)
        return [replace(one, features=True) for one in prepared] if features else prepared


def load(settings: Settings) -> Engine:
    """Load the models onto the device: blocking, takes seconds.

    Raises `ModelError` for an unknown model, device or number format, or if the models' labels
    differ.
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
    if _is_torch(settings.device):
        return _torch(where, settings)
    try:
        return openvino_engine.load(where, settings)
    except NotConverted as error:
        if settings.precision == "int8" or not pytorch.is_installed():
            raise
        logger.warning("%s; running it with PyTorch", error)
        return _torch(where, settings.model_copy(update={"device": "torch-cpu"}))


def _torch(where: Store, settings: Settings) -> Placed:
    if not pytorch.is_installed():
        raise ModelError(f"device {settings.device!r} needs PyTorch: {pytorch.INSTALL}")
    from service.engine import torch_engine  # noqa: PLC0415 - slow and optional

    return torch_engine.load(where, settings)


def _is_torch(device: str) -> bool:
    """Whether PyTorch runs a device: GPUs; for `auto`, if it can use any."""
    if device != "auto":
        return device != "cpu"
    if not (gpu_info.count() and pytorch.is_installed()):
        return False
    from service.engine import torch_engine  # noqa: PLC0415 - the same

    return torch_engine.gpus() > 0


def _check_labels(models: Sequence[Model]) -> None:
    first, *others = models
    for other in others:
        if other.labels != first.labels:
            raise ModelError(
                f"{first.name} and {other.name} have different labels and cannot be averaged"
            )


def _member(model: Model) -> Member:
    manifest = model.manifest
    return Member(
        model.name,
        manifest.version,
        manifest.architecture,
        model.sha256,
        manifest.preprocessing.resized,
        manifest.preprocessing.mirror,
        manifest.notice,
        channels=model.channels,
        sides=model.sides,
        lead=manifest.lead(model.sha256),
        standard_errors=manifest.standard_errors(model.sha256),
        label_sets=manifest.label_sets(model.sha256),
        references=manifest.references(model.sha256),
    )
