"""Batches of images, read by threads while the network computes.

Pillow lets go of Python's lock where it decodes and resizes, so threads are enough, and need
neither copies of the program nor shared memory.
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

AHEAD = 3  # batches that are being prepared beside the one that is learnt from


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and their classes; `waited` is how many seconds it took longer than the network."""

    pixels: Tensor  # (N, 224, 224, 3) uint8 RGB
    targets: Tensor  # (N,) int64
    waited: float


def batches(
    wanted: Sequence[Sequence[T]], prepare: Callable[[T], tuple[Pixels, int]], workers: int
) -> Iterator[Batch]:
    """Prepare what is wanted of each batch, in order, in so many threads."""
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        begun = ([pool.submit(prepare, one) for one in batch] for batch in wanted)
        pending = deque(islice(begun, AHEAD))
        try:
            while pending:
                yield _whole(pending.popleft())
                pending.extend(islice(begun, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _whole(parts: Sequence[Future[tuple[Pixels, int]]]) -> Batch:
    started = time.perf_counter()
    pixels, targets = zip(*(part.result() for part in parts), strict=True)
    waited = time.perf_counter() - started
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(targets), waited)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """Shuffle so many images, for each epoch anew and whenever asked the same."""
    places = list(range(count))
    Random(f"{seed} {epoch}").shuffle(places)
    return places


def divided(places: Sequence[T], batch: int, *, rank: int, size: int) -> list[list[T]]:
    """Divide images into batches of one size, and give one of `size` processes its parts.

    The last few, which do not fill a batch, have their turn in another epoch's order.
    """
    batch = min(batch, len(places))
    starts = range(0, len(places) - batch + 1, batch)
    return [list(places[start + rank : start + batch : size]) for start in starts]
