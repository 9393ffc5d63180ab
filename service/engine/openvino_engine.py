"""Loading of models on the CPU: read, compiled by OpenVINO, and measured."""

import logging
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata

from safetensors import numpy as safetensors

from service import cpu_info, python_process
from service.engine import openvino_executor, profiling
from service.engine.class_activation import Classifier
from service.engine.executor import Placed
from service.engine.measurement_cache import Measurements
from service.engine.openvino_executor import Compiled, Model
from service.engine.openvino_network import PART_ROWS
from service.engine.precision import agree, probe
from service.errors import ModelError, NotConverted
from service.models import converted_model, pytorch
from service.models.converted_model import Converted
from service.models.store import INT8, Store
from service.scheduling.cost_model import CostModel
from service.settings import Settings

logger = logging.getLogger(__name__)

_MAX_ROWS = 256  # of a batch, on a CPU with many cores


def read(store: Store, name: str, number_format: str) -> Model:
    """Read a model from the store, converting it first if necessary.

    Raises `MissingWeights`, `BadWeights` or `NotConverted`.
    """
    content, digest = store.read(name)
    floats = _read_floats(store, name, digest)
    served = _read_int8(store, name, digest) if number_format == "int8" else floats
    network = floats.description.network
    classifier = None
    if network.last is not None:
        tensors = safetensors.load(content)
        weight, bias = (tensors[f"{network.last}.{part}"].copy() for part in ("weight", "bias"))
        classifier = Classifier(weight, bias, network.window)
    return Model(name, store.manifest(name), store.labels(name), digest, floats, served, classifier)


def _read_floats(store: Store, name: str, digest: str) -> Converted:
    try:
        return converted_model.read(store, name, digest)
    except NotConverted as error:
        if not pytorch.is_installed():
            raise NotConverted(
                f"{error}; converting it needs PyTorch: {pytorch.INSTALL}"
            ) from error
        logger.info("converting %s: %s", name, error)
        _convert(store, name)
    return converted_model.read(store, name, digest)


def _convert(store: Store, name: str) -> None:
    """Convert a model in a subprocess, to keep PyTorch out of this one's memory."""
    command = python_process.command(
        "service", "models", "convert", name, f"--model-store={store.root}"
    )
    result = subprocess.run(  # noqa: S603 - ourselves
        command, env=python_process.environment(), check=False, capture_output=True, text=True
    )
    if result.returncode:
        message = result.stderr.strip().rpartition("\n")[2]
        raise NotConverted(message or f"converting {name!r} failed with status {result.returncode}")


def _read_int8(store: Store, name: str, digest: str) -> Converted:
    try:
        return converted_model.read(store, name, digest, INT8)
    except NotConverted as error:
        raise ModelError(
            f"int8 needs a model that was quantized for it ({error}): "
            f"googlenet-service models quantize {name} --calibrate DIR"
        ) from error


def load(where: Store, settings: Settings) -> Placed:
    """Read models from the store, compile, warm up and measure them.

    Cached measurements are reused. Raises what `read` raises, or `ModelError` for a number format
    that the CPU does not support.
    """
    models = [read(where, name, settings.precision) for name in settings.models]
    threads = settings.cpu_threads or cpu_info.available()
    return place(models, settings, threads)


def place(models: Sequence[Model], settings: Settings, threads: int) -> Placed:
    """Compile, warm up and measure models, on `threads` threads."""
    largest = settings.max_batch or min(PART_ROWS * threads, _MAX_ROWS)
    keys = profiling.keys(models)
    measurements = Measurements(
        {
            "openvino": metadata.version("openvino"),
            "models": [(model.sha256, str(model.manifest.preprocessing)) for model in models],
            "precision": settings.precision,
            "threads": threads,
            "largest": largest,
        }
    )
    cached = measurements.read(keys)
    precision, compiled = (
        (cached[0], _compiled(models, cached[0], threads))
        if cached
        else _choose(models, settings.precision, threads)
    )
    executors = openvino_executor.executors(compiled)
    started = time.perf_counter()
    if cached:
        lines = cached[1]
        for key in keys:
            profiling.warm_up(executors[0], key, lines[key])
    else:
        lines = {key: profiling.measure_line(executors[0], key, largest) for key in keys}
        measurements.write(precision, lines)
    seconds = time.perf_counter() - started
    return Placed(models, executors, CostModel(lines), "cpu", precision, seconds)


def _choose(models: Sequence[Model], precision: str, threads: int) -> tuple[str, list[Compiled]]:
    """Compile in a number format; `auto` is bfloat16 if it agrees with float32."""
    if precision == "float16":
        raise ModelError("float16 is for GPUs; on a CPU use bfloat16, float32 or int8")
    if precision != "auto":
        return precision, _compiled(models, precision, threads)
    exact = _compiled(models, "float32", threads)
    if openvino_executor.has_bfloat16():
        try:
            halves = _compiled(models, "bfloat16", threads)
        except ModelError as error:  # instructions may be hidden by configuration
            logger.info("%s", error)
        else:
            if _agree(exact, halves):
                return "bfloat16", halves
    return "float32", exact


def _agree(exact: Sequence[Compiled], halves: Sequence[Compiled]) -> bool:
    images = probe()
    expected, actual = (
        [model.probabilities(images) for model in models] for models in (exact, halves)
    )
    return agree(expected, actual, "bfloat16")


def _compiled(models: Sequence[Model], number_format: str, threads: int) -> list[Compiled]:
    return [Compiled(model, number_format, threads) for model in models]
