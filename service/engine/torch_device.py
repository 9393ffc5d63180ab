"""PyTorch devices: their choice, and how networks and batches are placed on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

from service.engine import cuda_fusion
from service.errors import ModelError, OutOfMemory

T = TypeVar("T")

CPU = "torch-cpu"  # the device setting for PyTorch on the CPU; "cpu" means OpenVINO

PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_CPU_NO_MEMORY = "can't allocate memory"  # in the message of a RuntimeError


def devices(choice: str, gpus: int) -> tuple[torch.device, ...]:
    """Return the devices for `auto` (every GPU, else the CPU), `cpu`, `cuda` (all) or `cuda:N`.

    `gpus` is their number. Raises `ModelError` for a missing device.
    """
    if choice in {"cpu", CPU} or (choice == "auto" and not gpus):
        return (torch.device("cpu"),)
    if not gpus:
        raise ModelError(f"there is no GPU for device {choice!r}; use auto or cpu")
    if choice in {"auto", "cuda"}:
        return tuple(torch.device("cuda", index) for index in range(gpus))
    device = torch.device(choice)
    if device.index >= gpus:
        raise ModelError(f"there is no {choice!r}: this machine's {gpus} GPUs begin at cuda:0")
    return (device,)


def name(precision: torch.dtype) -> str:
    """Return a number format's name in `PRECISIONS`."""
    return str(precision).removeprefix("torch.")


def place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to a device, in the fastest form there; changes it in place."""
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        network = cuda_fusion.fuse(network)
        # Otherwise float32 convolutions use TF32: 10 bits of mantissa instead of 23.
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's stub
    placed: nn.Module = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
    return placed


def sizes(device: torch.device, max_batch: int) -> tuple[int, ...]:
    """Return the batch sizes: powers of two up to `max_batch` (0: 16 on a CPU, 64 on a GPU)."""
    largest = max_batch or (16 if device.type == "cpu" else 64)
    powers = [2**power for power in range(largest.bit_length())]
    return tuple(sorted({*powers, largest}))


def forwards(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return a context for forward passes: no gradients and, on a GPU, its own stream."""
    return torch.inference_mode if device.type == "cpu" else _on_stream(device)


def _on_stream(  # pragma: no cover - needs a GPU
    device: torch.device,
) -> Callable[[], AbstractContextManager[None]]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's stub

    @contextmanager
    def entered() -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(stream):
            yield

    return entered


@contextmanager
def memory() -> Iterator[None]:
    """Translate PyTorch's out-of-memory errors, of any device, to `OutOfMemory`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()  # may free enough for smaller batches
        raise OutOfMemory("the device has no memory for this batch") from error
    except RuntimeError as error:
        if _CPU_NO_MEMORY not in str(error):
            raise
        raise OutOfMemory("there is no memory for this batch") from error


def to_device(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Concatenate tensors on a device; to a GPU as one pinned, asynchronous copy."""
    return torch.cat([*parts]) if device.type == "cpu" else _copied(parts, device)


def _copied(  # pragma: no cover - needs a GPU
    parts: Sequence[torch.Tensor], device: torch.device
) -> torch.Tensor:
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat([*parts], out=pinned).to(device, non_blocking=True)


def recorded(
    module: Callable[[torch.Tensor], T], device: torch.device
) -> Callable[[torch.Tensor], T]:
    """Return the module, on a GPU as CUDA graphs, which are faster to launch."""
    return module if device.type == "cpu" else _Recorded(module)


class _Recorded(Generic[T]):  # pragma: no cover - needs a GPU
    """A module as CUDA graphs, recorded once for each input shape and type, then replayed.

    Launching a network's kernels one by one takes Python longer than a small batch takes them.
    Not thread-safe: the next result of the same shape and type overwrites the last.
    """

    def __init__(self, module: Callable[[torch.Tensor], T]) -> None:
        self._module = module
        self._graphs: dict[
            tuple[torch.Size, torch.dtype],
            tuple[torch.cuda.CUDAGraph, torch.Tensor, T],
        ] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared, as one graph runs at a time

    def __call__(self, x: torch.Tensor) -> T:
        key = x.shape, x.dtype
        if key not in self._graphs:
            self._graphs[key] = self._record(x)
        graph, buffer, result = self._graphs[key]
        buffer.copy_(x)
        graph.replay()
        return result

    def _record(self, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, T]:
        buffer = x.clone()
        self._module(buffer)  # initialization by libraries cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",  # other threads use other GPUs
        ):
            result = self._module(buffer)
        return graph, buffer, result
