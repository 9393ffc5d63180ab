"""The OpenVINO executors: models compiled for a CPU, run on all cores.

Compiled models are dynamic in rows and sides, so one serves every view plan. Of two executors, one
keeps the cores busy while the other's last rows are computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from service.engine import openvino_graph
from service.engine.batch_assembly import Rows, assemble, results
from service.engine.class_activation import Classifier
from service.engine.executor import DeviceExecutor
from service.engine.openvino_api import core, error_line
from service.engine.openvino_network import CompiledGraph, Network
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, OutOfMemory
from service.models.converted_model import Converted
from service.models.ensemble import Result
from service.models.manifest import Label, Manifest
from service.scheduling.types import Batch

T = TypeVar("T")

_EXECUTORS = 2
_NO_MEMORY = ("bad_alloc", "allocate memory")  # in messages of RuntimeError


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from the store, converted for OpenVINO."""

    name: str
    manifest: Manifest
    labels: tuple[Label, ...]
    sha256: str
    floats: Converted
    served: Converted  # `floats`, or its quantized form
    classifier: Classifier | None

    @property
    def sides(self) -> tuple[int, ...]:
        """Supported view sizes in pixels."""
        return self.floats.description.network.sides

    @property
    def explains(self) -> bool:
        """Whether it has class activation maps."""
        return self.classifier is not None

    @property
    def channels(self) -> int:
        """The number of its features; 0 without class activation maps."""
        return self.classifier.weight.shape[1] if self.classifier else 0


class Compiled:
    """A model compiled for a CPU."""

    def __init__(self, model: Model, precision: str, threads: int) -> None:
        """Compile a model for a number format: float32, bfloat16 or int8.

        The float operations of an int8 model run in bfloat16 if the CPU supports it. Raises
        `ModelError` if the CPU does not support the format.
        """
        preprocessing = model.manifest.preprocessing
        temperature = model.manifest.temperature(model.sha256)

        def probabilities(hint: str) -> dict[np.dtype[Any], Network]:
            # Tensors sent instead of images are float32 and rare, so they have a separate graph.
            return {
                np.dtype(kind): Network(
                    openvino_graph.probabilities(model.served, preprocessing, temperature, kind),
                    hint,
                    threads,
                )
                for kind in (np.uint8, np.float32)
            }

        try:
            self._probabilities = _first(probabilities, _hints(precision))
            self._features = (
                CompiledGraph(
                    openvino_graph.features(model.floats, preprocessing), "f32", threads=threads
                )
                if model.classifier
                else None
            )
        except RuntimeError as error:
            raise ModelError(
                f"this CPU does not compute {model.name} in {precision}: {error_line(error)}"
            ) from error
        self._classifier = model.classifier

    def probabilities(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Compute (N, classes)."""
        return self._probabilities[rows.dtype].infer(rows)[0]

    def run(self, batch: Batch[PreparedImage], *, alone: bool) -> Sequence[Result]:
        """Run a batch; `alone` says whether no other is running."""
        rows = assemble(batch)
        if not batch.key.maps:
            return results(self._probabilities[rows.dtype].infer(rows, alone=alone), batch.slices)
        assert self._features is not None  # noqa: S101 - for mypy: only models with maps have such keys
        assert self._classifier is not None  # noqa: S101 - the same
        (part,) = batch.slices
        logits, features = self._features.infer([rows])
        return [self._classifier.explain(features[0], logits[0], part)]


def executors(models: Sequence[Compiled]) -> tuple[DeviceExecutor, ...]:
    """Make the executors of an ensemble on the CPU."""
    running: set[int] = set()

    def run(number: int, batch: Batch[PreparedImage]) -> Sequence[Result]:
        running.add(number)
        try:
            with _out_of_memory():
                return models[batch.key.member].run(batch, alone=len(running) == 1)
        finally:
            running.remove(number)

    return tuple(DeviceExecutor(partial(run, number)) for number in range(_EXECUTORS))


def has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions."""
    capabilities: list[str] = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def _hints(precision: str) -> Sequence[str]:
    """Return the precision hints to try in order: instructions may be hidden by configuration."""
    if precision == "int8" and has_bfloat16():
        return "bf16", "f32"
    return ("bf16",) if precision == "bfloat16" else ("f32",)


def _first(compiled: Callable[[str], T], hints: Sequence[str]) -> T:
    """Compile with the first hint that the CPU supports; raises the error of the last."""
    for hint in hints[:-1]:
        with suppress(RuntimeError):
            return compiled(hint)
    return compiled(hints[-1])


@contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        raise OutOfMemory("there is no memory for this batch") from error
