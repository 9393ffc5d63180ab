"""A model on its device: uint8 views to probabilities, in the quickest number format."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from service import packed, runtime, views
from service.errors import ModelError
from service.manifest import Preprocessing
from service.packed import Shape
from service.weights import Model

logger = logging.getLogger(__name__)

# How far a probability may be from float32's for a number format to be chosen by itself. On
# photos, formats within it agree on the first label (see `benchmarks/`).
AGREEMENT = 0.1


class Forward(nn.Module):
    """A member on its device: uint8 views to probabilities.

    Takes (N, side, side, 3) RGB, uint8 or float32, gives (N, classes) float32.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        shapes: Sequence[Shape],
    ) -> None:
        super().__init__()
        self.network = runtime.place(model.network(), device, dtype, shapes, model.largest)
        self.normalise = Normalise(model.manifest.preprocessing, packed.floats(dtype)).to(device)
        self.temperature = model.temperature

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(pixels))
        return (logits.float() / self.temperature).softmax(1)


class Normalise(nn.Module):
    """The last step of preprocessing: RGB pixels, uint8 or float32, to what a network takes.

    Takes (N, side, side, 3), gives (N, 3, side, side), channels-last in memory.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.is_bgr = preprocessing.channels == "BGR"
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("scale", torch.tensor(preprocessing.scale))

    def forward(self, pixels: Tensor) -> Tensor:
        channels = pixels.flip(-1) if self.is_bgr else pixels
        x = ((channels.float() - self.mean) * self.scale).to(self.dtype)
        return x.permute(0, 3, 1, 2)


def calibrate(model: Model, batches: Iterable[Tensor]) -> dict[str, float]:
    """Find what int8 has to know of a model, on batches of views: (N, 224, 224, 3) uint8."""
    normalise = Normalise(model.manifest.preprocessing, torch.float32)
    return packed.calibrate(model.network(), map(normalise, batches))


def quickest(
    models: Sequence[Model], device: torch.device, dtypes: Sequence[torch.dtype]
) -> torch.dtype:
    """Choose the quickest number format on this device that agrees with float32 there.

    Raises `ModelError` if there is none: int8 is for models that were calibrated, on a CPU, and
    no format for a device that has no instructions for it.
    """
    if not (runtime.packs(device) and all(model.largest for model in models)):
        dtypes = [dtype for dtype in dtypes if dtype != torch.int8]
    if not dtypes:
        raise ModelError(
            "int8 needs a CPU, and a model that was calibrated for it: "
            "googlenet-service models quantize NAME --calibrate DIR"
        )
    if {*dtypes} == {torch.float32}:
        return torch.float32
    with runtime.forwards(device)():
        if len(dtypes) == 1:
            return _Trial(models, device, *dtypes).dtype
        exact = _Trial(models, device, torch.float32)
        seconds = {exact.dtype: exact.seconds()} if exact.dtype in dtypes else {}
        for trial in _possible(models, device, [one for one in dtypes if one != exact.dtype]):
            if trial.agrees(exact):
                seconds[trial.dtype] = trial.seconds()
    return min(seconds, key=seconds.__getitem__)


class _Trial:
    """The models in a number format, and what they make of a few pictures."""

    def __init__(self, models: Sequence[Model], device: torch.device, dtype: torch.dtype) -> None:
        """Raise `ModelError` where the device does not compute in that format.

        And `OutOfMemory` where it has no memory for the models.
        """
        self.dtype, self._probe = dtype, _probe().to(device)
        shapes = [Shape(*self._probe.shape[:2])]
        try:
            with runtime.memory():
                forwards = [Forward(model, device, dtype, shapes) for model in models]
                self._forwards = [runtime.recorded(forward, device) for forward in forwards]
                self.found = [forward(self._probe).clone() for forward in self._forwards]
        except RuntimeError as error:  # such as oneDNN's on a CPU that is older than the format
            why = str(error.__cause__ or error).partition("\n")[0]
            raise ModelError(
                f"this device does not compute in {runtime.name(dtype)}: {why}"
            ) from error

    def agrees(self, exact: "_Trial") -> bool:
        """Tell whether no probability is far from float32's."""
        pairs = zip(self.found, exact.found, strict=True)
        apart = max(float((found - wanted).abs().max()) for found, wanted in pairs)
        logger.info("%s is at most %.4f from float32", runtime.name(self.dtype), apart)
        return apart <= AGREEMENT

    def seconds(self) -> float:
        """Time the models."""
        took = runtime.measure(lambda: [forward(self._probe).cpu() for forward in self._forwards])
        logger.info("%s: %.1f ms", runtime.name(self.dtype), 1e3 * took)
        return took


def _possible(
    models: Sequence[Model], device: torch.device, dtypes: Iterable[torch.dtype]
) -> Iterator[_Trial]:
    """Try the number formats that the device computes in."""
    for dtype in dtypes:
        try:
            yield _Trial(models, device, dtype)
        except ModelError as error:
            # Many CPUs have not all of them; a GPU that refuses one has something else.
            logger.log(logging.INFO if device.type == "cpu" else logging.WARNING, "%s", error)


def _probe() -> Tensor:
    """Make pictures to compare number formats on: (8, 224, 224, 3) uint8, smooth and random."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((8, 3, 7, 7), generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size=views.CROP, mode="bilinear")
    return smooth.round().byte().permute(0, 2, 3, 1).contiguous()
