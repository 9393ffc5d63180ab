"""int8 for a model: what it has to know, from pictures, and how well it then agrees."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service import forward, images, runtime, views
from service.errors import ModelError
from service.forward import Forward
from service.packed import Shape
from service.weights import Model

ENOUGH = 0.97  # of the pictures must have the same first label as in float32

_ROWS = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Trial:
    """What came out: what to record, and how near int8 is to float32.

    Pictures are judged by what was learned from others: one half by the other.
    """

    largest: Mapping[str, float]
    pictures: int
    same: int  # pictures with the same first label as in float32
    furthest: float  # the largest difference of a probability

    @property
    def passed(self) -> bool:
        """Does it agree well enough to be served."""
        return self.same >= ENOUGH * self.pictures


def attempt(model: Model, pictures: Sequence[bytes], *, max_pixels: int) -> Trial:
    """Calibrate a model on pictures, and compare its int8 with float32 on them.

    Raises `UnreadableImage` or another error of the picture that cannot be decoded, and
    `ModelError` if there are fewer than two.
    """
    if len(pictures) < 2:  # noqa: PLR2004 - one half to learn from, one to judge
        raise ModelError("calibration takes two pictures or more, of what the model will see")
    plan = views.plan("single", model.manifest.preprocessing.resized)
    crops = []
    for picture in pictures:
        upright = images.decode(picture, max_pixels=max_pixels, enough=plan.enough)
        (canvas,) = views.canvases(upright, plan)
        crops.append(torch.from_numpy(canvas))
    return runtime.compute(lambda: _attempt(model, torch.stack(crops)))


def _attempt(model: Model, rows: Tensor) -> Trial:
    exact = _probabilities(model, torch.float32, rows)
    got = torch.empty_like(exact)
    for half in (0, 1):
        learned = forward.calibrate(model, _batches(rows[1 - half :: 2]))
        got[half::2] = _probabilities(replace(model, largest=learned), torch.int8, rows[half::2])
    return Trial(
        forward.calibrate(model, _batches(rows)),
        len(rows),
        int((exact.argmax(1) == got.argmax(1)).sum()),
        float((exact - got).abs().max()),
    )


def _probabilities(model: Model, dtype: torch.dtype, rows: Tensor) -> Tensor:
    network = Forward(model, _CPU, dtype, [Shape(_ROWS, views.CROP)])
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in _padded(rows)])[: len(rows)]


def _batches(rows: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(rows, _ROWS))


def _padded(rows: Tensor) -> Iterator[Tensor]:
    missing = -len(rows) % _ROWS
    return _batches(torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))]))
