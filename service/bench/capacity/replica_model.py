"""One replica of the service: what it has, and how long each thing takes there.

What computes and what decodes share a machine, so each takes longer the more is at work beside
it: measured alone and beside everything else, and in between by interpolation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.scheduling.cost_model import CostModel, Key

JobSpec = Mapping[Key, int]  # what a request brings: rows, by key


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long something takes: when nothing else is at work, and when everything is."""

    alone: float
    beside: float

    def at(self, share: float) -> float:
        """Interpolate for a share of what else there is at work."""
        return self.alone + share * (self.beside - self.alone)


class Stages(NamedTuple):
    """A number for each stage, such as how many of it are at work."""

    computing: float  # devices
    decoding: float  # threads
    http: float  # one event loop


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica has, and what each thing takes there."""

    executors: tuple[int, ...]  # the device of each executor
    costs: CostModel  # by which it forms batches and admits
    batches: Mapping[Key, Mapping[int, Seconds]]  # of a device; beside: all devices run one
    slowed: float = 0.0  # what each image being decoded, or HTTP, adds to a batch, as a share
    decode: Seconds = Seconds(0.0, 0.0)  # of an image
    decoders: int = 1  # threads
    http: Seconds = Seconds(0.0, 0.0)  # of the event loop, for a request

    @property
    def devices(self) -> frozenset[int]:
        """The devices that compute side by side."""
        return frozenset(self.executors)

    def batch_seconds(self, key: Key, size: int, busy: Stages) -> float:
        """Give a batch's seconds on one device; between the sizes that were measured, linearly."""
        others = (busy.computing - 1) / max(1, len(self.devices) - 1)
        sizes = sorted(self.batches[key])
        seconds = [self.batches[key][one].at(others) for one in sizes]
        slower = 1 + self.slowed * (busy.decoding + busy.http)
        return float(np.interp(size, sizes, seconds)) * slower

    def decode_seconds(self, busy: Stages) -> float:
        """Give an image's seconds."""
        return self.decode.at(self._others(busy))

    def http_seconds(self, busy: Stages) -> float:
        """Give a request's seconds."""
        return self.http.at(self._others(busy))

    def _others(self, busy: Stages) -> float:
        """Give the share of what else there is that is at work beside an image or a request."""
        return (sum(busy) - 1) / (len(self.devices) + self.decoders - 1)

    @property
    def most(self) -> Stages:
        """How many of each stage there are."""
        return Stages(len(self.devices), self.decoders, 1)

    def least(self, spec: JobSpec) -> float:
        """Give the seconds between two requests that it cannot keep up with, whatever it does."""
        cheapest = {key: min(s.alone / n for n, s in self.batches[key].items()) for key in spec}
        rows = sum(cheapest[key] * rows for key, rows in spec.items())
        return max(rows / len(self.devices), self.decode.alone / self.decoders, self.http.alone)
