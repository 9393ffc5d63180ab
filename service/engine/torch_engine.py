"""Loading of models by PyTorch: on GPUs, or on the CPU as the reference for tests."""

import time
from collections.abc import Sequence

import torch

from service.engine import profiling, torch_device, torch_executor, weights
from service.engine.executor import Placed
from service.engine.weights import Model
from service.models.store import Store
from service.scheduling.cost_model import CostModel
from service.settings import Settings


def gpus() -> int:
    """Count the GPUs that PyTorch can use."""
    return torch.cuda.device_count()


def load(where: Store, settings: Settings) -> Placed:
    """Read models from the store, place, warm up and measure them.

    Raises what `weights.load` raises, or `ModelError` for a missing device or number format.
    """
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    models = [weights.load(where, name) for name in settings.models]
    return place(models, settings)


def place(models: Sequence[Model], settings: Settings) -> Placed:
    """Place models on their devices and measure every batch size."""
    devices = torch_device.devices(settings.device, gpus())
    dtype = torch_executor.choose_precision(models, devices[0], settings.precision)
    executors = torch_executor.executors(models, devices, dtype)
    sizes = torch_device.sizes(devices[0], settings.max_batch)
    keys = profiling.keys(models)
    started = time.perf_counter()
    costs = CostModel({key: profiling.measure_buckets(executors, key, sizes) for key in keys})
    seconds = time.perf_counter() - started
    names = ",".join(str(device) for device in devices)
    return Placed(models, executors, costs, names, torch_device.name(dtype), seconds)
