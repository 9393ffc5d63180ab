"""The PyTorch executor: GPUs, or the CPU as the reference that OpenVINO is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from service.engine import batch_assembly, torch_device
from service.engine.executor import DeviceExecutor
from service.engine.precision import Probabilities as Probed
from service.engine.precision import agree, probe
from service.engine.prepared_image import PreparedImage
from service.engine.torch_network import Features, Probabilities
from service.engine.weights import Model
from service.errors import ModelError
from service.models.ensemble import Result
from service.scheduling.types import Batch

_PER_GPU = 2  # executors, so that one batch is copied while the other is computed


@dataclass(frozen=True, slots=True)
class _Member:
    """A model on a device; `features` if it has class activation maps."""

    probabilities: Probabilities
    features: Features | None

    @classmethod
    def of(cls, model: Model, device: torch.device, dtype: torch.dtype) -> Self:
        features = Features(model, device) if model.explains else None
        return cls(Probabilities(model, device, dtype), features)


def executors(
    models: Sequence[Model], devices: Sequence[torch.device], dtype: torch.dtype
) -> tuple[DeviceExecutor, ...]:
    """Make the executors of an ensemble: one for a CPU, two per GPU."""
    built = []
    for number, device in enumerate(devices):
        members = [_Member.of(model, device, dtype) for model in models]
        count = 1 if device.type == "cpu" else _PER_GPU
        built += [_executor(members, device, number) for _ in range(count)]
    return tuple(built)


def _executor(members: Sequence[_Member], device: torch.device, number: int) -> DeviceExecutor:
    forwards = torch_device.forwards(device)
    networks = [torch_device.recorded(member.probabilities, device) for member in members]

    def run(batch: Batch[PreparedImage]) -> Sequence[Result]:
        with torch_device.memory(), forwards():
            pixels = cut(batch, device)
            if batch.key.maps:
                return [_explained(members[batch.key.member].features, pixels, batch)]
            probabilities, features = networks[batch.key.member](pixels)
            # The copy to the host synchronizes with the device.
            outputs = [probabilities.cpu().numpy()]
            if batch_assembly.has_features(batch):
                outputs.append(features.float().cpu().numpy())
        return batch_assembly.results(outputs, batch.slices)

    return DeviceExecutor(run, number)


def _explained(features: Features | None, pixels: Tensor, batch: Batch[PreparedImage]) -> Result:
    assert features is not None  # noqa: S101 - for mypy: only models with maps have such keys
    logits, maps = (output[0].cpu().numpy() for output in features(pixels))
    return features.classifier.explain(maps, logits, batch.slices[0])


def cut(batch: Batch[PreparedImage], device: torch.device) -> Tensor:
    """Cut a batch's views on its device: (size, side, side, 3), zeros for padding."""
    if device.type == "cpu":
        return torch.from_numpy(batch_assembly.assemble(batch))
    return gathered(batch, device)


def gathered(batch: Batch[PreparedImage], device: torch.device) -> Tensor:
    """Gather all views with one index operation, from canvases copied at once.

    On a GPU one copy per view would take longer to launch than to run.
    """
    side, dtype = batch.key.side, _dtype(batch)
    canvases: list[Tensor] = []  # each (pixels, 3)
    views_at: list[tuple[int, int, bool]] = []  # each view's first pixel, canvas width, mirror
    pixels = 0
    for part in batch.slices:
        views = part.payload.plan.views[part.start : part.stop]
        starts = {}
        for number in sorted({view.canvas for view in views}):
            starts[number] = pixels
            canvas = part.payload.canvases[number]
            canvases.append(torch.from_numpy(canvas).view(-1, 3).to(dtype))
            pixels += len(canvases[-1])
        for view in views:
            width = part.payload.canvases[view.canvas].shape[1]
            first = starts[view.canvas] + view.top * width + view.left
            views_at.append((first, width, view.mirror))
    flat = torch_device.to_device(canvases, device)  # (pixels, 3)
    first, width, mirrored = (
        torch_device.to_device([torch.tensor(views_at)], device).T[..., None, None]
    )  # fmt: skip
    along = torch.arange(side, device=device)
    columns = torch.where(mirrored.bool(), side - 1 - along, along)  # (views, 1, side)
    rows = torch.zeros((batch.size, side, side, 3), dtype=dtype, device=device)
    rows[: len(views_at)] = flat[first + along[:, None] * width + columns]
    return rows


def _dtype(batch: Batch[PreparedImage]) -> torch.dtype:
    return {"uint8": torch.uint8, "float32": torch.float32}[batch_assembly.dtype(batch).__name__]


def choose_precision(models: Sequence[Model], device: torch.device, precision: str) -> torch.dtype:
    """Choose the number format; `auto` is float16 on a GPU if it agrees with float32.

    Raises `ModelError` for a format that PyTorch or the device does not support.
    """
    if precision == "int8":
        raise ModelError("int8 is for a CPU, where OpenVINO computes: --device cpu")
    if precision != "auto":
        dtype = torch_device.PRECISIONS[precision]
        if dtype is not torch.float32:  # which every device supports
            _probabilities(models, device, dtype)
        return dtype
    if device.type == "cpu":
        return torch.float32
    exact, half = (  # pragma: no cover - needs a GPU
        _probabilities(models, device, dtype) for dtype in (torch.float32, torch.float16)
    )
    return torch.float16 if agree(exact, half, "float16") else torch.float32  # pragma: no cover


def _probabilities(
    models: Sequence[Model], device: torch.device, dtype: torch.dtype
) -> list[Probed]:
    x = torch.from_numpy(probe()).to(device)
    try:
        with torch_device.memory(), torch_device.forwards(device)():
            return [Probabilities(model, device, dtype)(x)[0].cpu().numpy() for model in models]
    except RuntimeError as error:
        why = str(error.__cause__ or error).partition("\n")[0]
        raise ModelError(
            f"this device does not compute in {torch_device.name(dtype)}: {why}"
        ) from error
