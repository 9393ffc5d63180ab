"""Batches of images, loaded by threads while the network computes.

Pillow releases the GIL while it decodes and resizes, so threads are enough: worker processes
would need copies of the program and shared memory.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from service.imaging.crops import Pixels

T = TypeVar("T")

AHEAD = 3  # batches that are prefetched


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and their classes; `waited` is how many seconds the network waited for them."""

    pixels: Tensor  # (N, 224, 224, 3) uint8 RGB
    targets: Tensor  # (N,) int64
    waited: float


def batches(
    parts: Sequence[Sequence[T]], prepare: Callable[[T], tuple[Pixels, int]], workers: int
) -> Iterator[Batch]:
    """Prepare the images of each batch in `workers` threads; yields the batches in order."""
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        futures = ([pool.submit(prepare, item) for item in part] for part in parts)
        pending = deque(islice(futures, AHEAD))
        try:
            while pending:
                yield _collect(pending.popleft())
                pending.extend(islice(futures, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(futures: Sequence[Future[tuple[Pixels, int]]]) -> Batch:
    started = time.perf_counter()
    pixels, targets = zip(*(future.result() for future in futures), strict=True)
    waited = time.perf_counter() - started
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(targets), waited)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """Shuffle the indices of `count` images: another order each epoch, the same for a seed."""
    indices = list(range(count))
    Random(f"{seed} {epoch}").shuffle(indices)
    return indices


def divide(items: Sequence[T], batch: int, *, rank: int, size: int) -> list[list[T]]:
    """Divide items into full batches; returns the parts of process `rank` of `size`.

    The last few, which do not fill a batch, are left to other epochs' orders.
    """
    batch = min(batch, len(items))
    starts = range(0, len(items) - batch + 1, batch)
    return [list(items[start + rank : start + batch : size]) for start in starts]
