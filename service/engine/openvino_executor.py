"""OpenVINO on a CPU: models compiled for batches of any size, and one executor for all cores.

Dynamic in rows and sides, one compiled model serves every view plan. One stream: batches that
share the cores side by side were no quicker (`benchmarks/README.md`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from service.engine import openvino_graph
from service.engine.batch_assembly import Rows, assemble, sums
from service.engine.class_activation import Classifier
from service.engine.executor import DeviceExecutor
from service.engine.openvino_api import core
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError, OutOfMemory
from service.models.converted_model import Converted
from service.models.ensemble import Result
from service.models.manifest import Label, Manifest
from service.scheduling.types import Batch

T = TypeVar("T")

_NO_MEMORY = ("bad_alloc", "allocate memory")  # in the messages of errors that are nothing else


@dataclass(frozen=True, slots=True)
class Model:
    """A model read from the store, as OpenVINO takes it."""

    name: str
    manifest: Manifest
    labels: tuple[Label, ...]
    sha256: str
    floats: Converted
    served: Converted  # the same, or quantized
    classifier: Classifier | None

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of the views that its network takes."""
        return self.floats.description.network.sides

    @property
    def explains(self) -> bool:
        """Has its network class activation maps."""
        return self.classifier is not None


class Compiled:
    """A model compiled for a CPU."""

    def __init__(self, model: Model, precision: str, threads: int) -> None:
        """Compile it for a number format: float32, bfloat16 or int8.

        What of an int8 model is not in int8 is in bfloat16 where the CPU computes in that. Raises
        `ModelError` if it refuses.
        """
        compile_ = partial(_compile, threads=threads)
        scaled, temperature = model.manifest.preprocessing, model.manifest.temperature(model.sha256)

        def probabilities(hint: str) -> dict[np.dtype[Any], Any]:
            # Tensors that come instead of images are float32, and rare: a graph of their own.
            return {
                np.dtype(kind): compile_(
                    openvino_graph.probabilities(model.served, scaled, temperature, kind), hint
                )
                for kind in (np.uint8, np.float32)
            }

        try:
            self._probabilities = _first(probabilities, _hints(precision))
            self._features = (
                compile_(openvino_graph.features(model.floats, scaled), "f32")
                if model.classifier
                else None
            )
        except RuntimeError as error:
            raise ModelError(
                f"this CPU does not compute {model.name} in {precision}: {_last_line(error)}"
            ) from error
        self._classifier = model.classifier

    def probabilities(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Give (N, classes); valid until the next call."""
        request = self._probabilities[rows.dtype]
        return _infer(request, rows)[0]

    def run(self, batch: Batch[PreparedImage]) -> Sequence[Result]:
        """Run a batch of the model's."""
        rows = assemble(batch)
        if not batch.key.maps:
            return sums(self.probabilities(rows), batch.slices)
        assert self._classifier is not None  # noqa: S101 - there are costs for its key; tells mypy
        (part,) = batch.slices
        logits, features = _infer(self._features, rows)
        return [self._classifier.explain(features[0], logits[0], part)]


def executor(models: Sequence[Compiled]) -> DeviceExecutor:
    """Give the executor of an ensemble on the CPU."""

    def run(batch: Batch[PreparedImage]) -> Sequence[Result]:
        with _memory():
            return models[batch.key.member].run(batch)

    return DeviceExecutor(run)


def has_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16."""
    capabilities: list[str] = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def _hints(precision: str) -> Sequence[str]:
    """Give the formats to try, the best first: a CPU may be told to hide its instructions."""
    if precision == "int8" and has_bfloat16():
        return "bf16", "f32"
    return ("bf16",) if precision == "bfloat16" else ("f32",)


def _first(compiled: Callable[[str], T], hints: Sequence[str]) -> T:
    """Compile in the first format that the CPU does not refuse; raises what it does of the last."""
    for hint in hints[:-1]:
        with suppress(RuntimeError):
            return compiled(hint)
    return compiled(hints[-1])


def _compile(graph: Any, hint: str, threads: int) -> Any:
    """Compile a graph for batches one after the other, each on so many threads."""
    config = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    return core().compile_model(graph, "CPU", config).create_infer_request()


def _infer(request: Any, rows: Rows) -> list[npt.NDArray[np.float32]]:
    request.infer({0: rows}, share_inputs=True)
    return [tensor.data for tensor in request.output_tensors]


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(one in str(error) for one in _NO_MEMORY):
            raise
        raise OutOfMemory("there is no memory for this batch") from error


def _last_line(error: Exception) -> str:
    """Give what an error of OpenVINO says, without where in its sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
