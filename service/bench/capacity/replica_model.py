"""The model of a replica: its stages, and how long each takes.

Inference and decoding share a machine, so each takes longer the more else is busy: measured alone
and beside everything else, and interpolated in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.scheduling.cost_model import CostModel, Key

Rows = Mapping[Key, int]  # of a request, by key


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration: when nothing else is busy, and when everything is."""

    alone: float
    beside: float

    def at(self, share: float) -> float:
        """Interpolate for the busy share of everything else."""
        return self.alone + share * (self.beside - self.alone)


class Stages(NamedTuple):
    """A number for each stage, such as how many of it are busy."""

    computing: float  # devices
    decoding: float  # threads
    http: float  # one event loop


@dataclass(frozen=True, slots=True)
class Replica:
    """The executors, threads and durations of a replica."""

    executors: tuple[int, ...]  # the device of each executor
    costs: CostModel  # for batches and admission
    batches: Mapping[Key, Mapping[int, Seconds]]  # of one device; beside: all devices are busy
    slowed: float = 0.0  # share that each decoding image, or HTTP, adds to a batch
    decode: Seconds = Seconds(0.0, 0.0)  # of an image
    decoders: int = 1  # threads
    http: Seconds = Seconds(0.0, 0.0)  # of the event loop, for a request

    @property
    def devices(self) -> frozenset[int]:
        """The devices, which compute in parallel."""
        return frozenset(self.executors)

    def batch_seconds(self, key: Key, size: int, busy: Stages) -> float:
        """Return a batch's seconds on one device, interpolated between measured sizes."""
        others = (busy.computing - 1) / max(1, len(self.devices) - 1)
        sizes = sorted(self.batches[key])
        seconds = [self.batches[key][measured].at(others) for measured in sizes]
        slower = 1 + self.slowed * (busy.decoding + busy.http)
        return float(np.interp(size, sizes, seconds)) * slower

    def decode_seconds(self, busy: Stages) -> float:
        """Return the seconds to decode an image."""
        return self.decode.at(self._others(busy))

    def http_seconds(self, busy: Stages) -> float:
        """Return the event loop's seconds for a request."""
        return self.http.at(self._others(busy))

    def _others(self, busy: Stages) -> float:
        """Return the busy share of everything else."""
        return (sum(busy) - 1) / (len(self.devices) + self.decoders - 1)

    @property
    def most(self) -> Stages:
        """The capacity of each stage."""
        return Stages(len(self.devices), self.decoders, 1)

    def least(self, request: Rows) -> float:
        """Return the seconds between requests below which any schedule is overloaded."""
        cheapest = {key: min(s.alone / n for n, s in self.batches[key].items()) for key in request}
        seconds = sum(cheapest[key] * rows for key, rows in request.items())
        return max(seconds / len(self.devices), self.decode.alone / self.decoders, self.http.alone)
