"""The processes that train together: this one alone, or those that `torchrun` has started."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from service.engine import torch_device

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The rank of this process among `size` processes, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    @property
    def single(self) -> "ProcessGroup":
        """A group of one process on the same device."""
        return ProcessGroup(0, 1, self.device)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # every process has put one in


@contextmanager
def join(choice: str) -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` has started, or make a group of this process alone.

    `choice` is the setting `device`: each process has one GPU, or all share the CPU.
    """
    devices = torch_device.devices(choice, torch.cuda.device_count())
    if not dist.is_torchelastic_launched():
        yield ProcessGroup(0, 1, devices[0])
        return
    device = devices[dist.get_node_local_rank() % len(devices)]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
        # A process that ends while Gloo's threads still hold tensors of its last exchange is
        # aborted. A barrier leaves them no Python objects.
        dist.barrier()
    finally:
        dist.destroy_process_group()
