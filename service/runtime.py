"""The device: which one, in what form and precision a network runs on it, and what it costs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import nn

from service import fused, packed
from service.errors import ModelError, OutOfMemory
from service.packed import Shape

T = TypeVar("T")

_LONG = 0.1  # seconds; what else a machine does is little beside it
_NO_MEMORY = "the device has no memory for this batch"
_CPU_NO_MEMORY = "can't allocate memory"  # all that tells a CPU's from other errors

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def devices(choice: str, gpus: int) -> tuple[torch.device, ...]:
    """Give the devices for `auto` (every GPU, else the CPU), `cpu`, `cuda` (all) or `cuda:N`.

    `gpus` is how many there are. Raises `ModelError` for a device that is not there.
    """
    if choice == "cpu" or (choice == "auto" and not gpus):
        return (torch.device("cpu"),)
    if not gpus:
        raise ModelError(f"there is no GPU for device {choice!r}; use auto or cpu")
    if choice in {"auto", "cuda"}:
        return tuple(torch.device("cuda", index) for index in range(gpus))
    device = torch.device(choice)
    if device.index >= gpus:
        raise ModelError(f"there is no {choice!r}: this machine's {gpus} GPUs begin at cuda:0")
    return (device,)


def precisions(choice: str) -> tuple[torch.dtype, ...]:
    """Give the number formats of the forward that are allowed; `auto` allows all."""
    return tuple(PRECISIONS.values()) if choice == "auto" else (PRECISIONS[choice],)


def name(precision: torch.dtype) -> str:
    """Give what a number format is called, as in `PRECISIONS`."""
    return str(precision).removeprefix("torch.")


def packs(device: torch.device) -> bool:
    """Tell whether networks are rewritten for a device, which is what int8 needs."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stub


def place(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    largest: Mapping[str, float] | None,
) -> nn.Module:
    """Take over a network and put it on a device, in the form that is quickest there.

    `largest` is what int8 needs to know of the network; see `service.packed`.
    """
    if packs(device):
        return packed.pack(network, dtype, shapes, largest)
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        network = fused.fuse(network)
        # Else "float32" convolutions have ten bits of its 23 (TF32).
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # torch's stub
    placed: nn.Module = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the format
    return placed


def sizes(device: torch.device, max_batch: int) -> tuple[int, ...]:
    """Give the buckets: powers of two up to `max_batch` (0: 16 on a CPU, 64 on a GPU)."""
    most = max_batch or (16 if device.type == "cpu" else 64)
    powers = [2**power for power in range(most.bit_length())]
    return tuple(sorted({*powers, most}))


def compute(work: Callable[[], T], threads: int = 0) -> T:
    """Do work in a thread that ends, on so many cores (0: as many as it chooses itself).

    GNU OpenMP keeps a pool for every thread that ever computed, and gives up spinning between
    layers when these are more than the cores: a lone request would take three times as long.
    """

    def limited() -> T:
        _limit(threads)
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="compute") as once:
        return once.submit(limited).result()


def _limit(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)  # of the calling thread, whatever its name says


def forwards(device: torch.device, threads: int = 0) -> Callable[[], AbstractContextManager[None]]:
    """Give a context to run forwards in: no gradients, and a share of the device.

    The share is so many threads of a CPU (0: as they are), or a stream of a GPU.
    """
    return _on_cores(threads) if device.type == "cpu" else _on_stream(device)


def _on_cores(threads: int) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def entered() -> Iterator[None]:
        _limit(threads)
        with torch.inference_mode():
            yield

    return entered


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
        raise OutOfMemory(_NO_MEMORY) from error
    except RuntimeError as error:
        if _CPU_NO_MEMORY not in str(error):
            raise
        raise OutOfMemory(_NO_MEMORY) from error


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


def measure(run: Callable[[], object], *, repeats: int = 2) -> float:
    """Warm up with one run, then give the seconds of the quickest of `repeats` more.

    The quickest, since a device takes the same time for the same work and everything else
    that a run meets only adds; that is little to a run of `_LONG` seconds, and one is enough.
    Costs are kept up to date while serving.
    """
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < _LONG:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
