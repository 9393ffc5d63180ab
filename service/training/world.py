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
class World:
    """Which of how many processes this is, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether it is this one that writes and says something."""
        return self.rank == 0

    @property
    def alone(self) -> "World":
        """The same without the others."""
        return World(0, 1, self.device)

    def all(self, value: T) -> list[T]:
        """Give everybody's values, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # everybody has put one in


@contextmanager
def joined(choice: str) -> Iterator[World]:
    """Join the processes that `torchrun` has started; where it has not, this one is all.

    `choice` is the setting `device`: each process has one GPU, or all share the CPU.
    """
    devices = torch_device.devices(choice, torch.cuda.device_count())
    if not dist.is_torchelastic_launched():
        yield World(0, 1, devices[0])
        return
    device = devices[dist.get_node_local_rank() % len(devices)]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
        # A process that ends while Gloo's threads still hold tensors of its last exchange is
        # aborted. What a barrier leaves with them is no Python object.
        dist.barrier()
    finally:
        dist.destroy_process_group()
