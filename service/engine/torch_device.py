"""A device of PyTorch: which one, in what form a network runs on it, and how batches get there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from service.engine import cuda_fusion
from service.errors import ModelError, OutOfMemory

CPU = "torch-cpu"  # as a choice of device: PyTorch's, where the usual one is OpenVINO's

PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_CPU_NO_MEMORY = "can't allocate memory"  # all that tells a CPU's from other errors


def devices(choice: str, gpus: int) -> tuple[torch.device, ...]:
    """Give the devices for `auto` (every GPU, else the CPU), `cpu`, `cuda` (all) or `cuda:N`.

    `gpus` is how many there are. Raises `ModelError` for a device that is not there.
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
    """Give what a number format is called, as in `PRECISIONS`."""
    return str(precision).removeprefix("torch.")


def place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Take over a network and put it on a device, in the form that is quickest there."""
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        network = cuda_fusion.fuse(network)
        # Else "float32" convolutions have ten bits of its 23 (TF32).
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's stub
    placed: nn.Module = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the format
    return placed


def sizes(device: torch.device, max_batch: int) -> tuple[int, ...]:
    """Give the buckets: powers of two up to `max_batch` (0: 16 on a CPU, 64 on a GPU)."""
    most = max_batch or (16 if device.type == "cpu" else 64)
    powers = [2**power for power in range(most.bit_length())]
    return tuple(sorted({*powers, most}))


def forwards(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Give a context to run forwards in: no gradients and, on a GPU, a stream of its own."""
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
    """Raise `OutOfMemory` where torch has no memory for what is computed, on any device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()  # what is kept for larger batches may be enough for smaller ones
        raise OutOfMemory("the device has no memory for this batch") from error
    except RuntimeError as error:
        if _CPU_NO_MEMORY not in str(error):
            raise
        raise OutOfMemory("there is no memory for this batch") from error


def to_device(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Bring tensors to a device, joined; to a GPU as one pinned, asynchronous copy."""
    return torch.cat([*parts]) if device.type == "cpu" else _copied(parts, device)


def _copied(  # pragma: no cover - needs a GPU
    parts: Sequence[torch.Tensor], device: torch.device
) -> torch.Tensor:
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat([*parts], out=pinned).to(device, non_blocking=True)


def recorded(
    module: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give what does the same work as a module, and is quickest to start on a device."""
    return module if device.type == "cpu" else _Recorded(module)


class _Recorded:  # pragma: no cover - needs a GPU
    """A module's work as CUDA graphs: recorded once for each shape and type of its input.

    Replayed from then on: starting a network's kernels one by one takes Python longer than a
    small batch takes them. For one caller at a time: a result stands where the next one of its
    shape and type will.
    """

    def __init__(self, module: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._module = module
        self._graphs: dict[
            tuple[torch.Size, torch.dtype],
            tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor],
        ] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one at a time: they can share their memory

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        key = x.shape, x.dtype
        if key not in self._graphs:
            self._graphs[key] = self._record(x)
        graph, given, result = self._graphs[key]
        given.copy_(x)
        graph.replay()
        return result

    def _record(self, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        given = x.clone()
        self._module(given)  # what libraries set up the first time cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",  # other threads are busy with other GPUs
        ):
            result = self._module(given)
        return graph, given, result
