"""The trainer: epochs of learning and judging, until nothing is gained any more."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name PyTorch's own documentation uses
from torch import Tensor

from service.errors import ModelError
from service.training import checkpoint, learner
from service.training.images import TrainingImages
from service.training.learner import Learner
from service.training.world import World

SAVE_SECONDS = 300.0  # of a long epoch, what a kill costs at most


@dataclass(frozen=True, slots=True)
class Epoch:
    """What came of an epoch, counted from 1; losses are mean cross-entropies in nats."""

    epoch: int
    rate: float
    loss: float
    held_out_loss: float
    held_out_top1: float
    """Per cent; like the loss, of the averaged weights on all that is held out."""
    seconds: float
    waited: float
    """Seconds of these in which the network waited for images."""


@dataclass(frozen=True, slots=True)
class _Place:
    """How far it has come: steps of an epoch, counted from 0, and what they summed up to."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def after(self, loss: float, seconds: float, waited: float) -> "_Place":
        return _Place(
            self.epoch,
            self.step + 1,
            self.loss + loss,
            self.seconds + seconds,
            self.waited + waited,
        )


class Trainer:
    """Trains a learner on images; goes on from the checkpoint, if there is one."""

    def __init__(
        self, learner: Learner, images: TrainingImages, world: World, path: Path, *, of: str
    ) -> None:
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self._learner = learner
        self.images = images
        self._options = images.options
        self._world = world
        self._path = path
        self._of = of
        self._place = _Place()
        self._saved = time.monotonic()
        self._resume()

    @property
    def best_epoch(self) -> Epoch:
        """The epoch whose averaged weights are `best`."""
        return min(self.history, key=lambda epoch: epoch.held_out_loss)

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end, or gains nothing any more."""
        if not self.history:
            return False
        idle = len(self.history) - self.best_epoch.epoch
        return len(self.history) >= self._options.epochs or idle >= self._options.patience

    def epochs(self, stepped: Callable[[int, int, int], None]) -> Iterator[Epoch]:
        """Train until it is over; `stepped` is told the epoch, the steps done and of how many."""
        while not self.is_over:
            self._learn(stepped)
            self._judge()
            self._save()
            yield self.history[-1]

    def held_out(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Give the logits that the best weights give all that is held out, and the classes."""
        self._learner.take(self.best)
        batches = self.images.held_out(self._world.alone)
        parts = [(self._learner.logits(batch), batch.targets) for batch in batches]
        logits, targets = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return logits, targets

    def _learn(self, stepped: Callable[[int, int, int], None]) -> None:
        steps = self.images.steps(self._world)
        place = self._place
        before = time.monotonic()
        for batch in self.images.learnt(place.epoch, place.step, self._world):
            loss = self._learner.step(batch, place.epoch, place.step)
            if not math.isfinite(loss):
                raise ModelError(
                    f"in epoch {place.epoch + 1} the loss is no number any more; "
                    "a smaller --rate may help"
                )
            now = time.monotonic()
            place = self._place = place.after(loss, now - before, batch.waited)
            before = now
            stepped(place.epoch + 1, place.step, steps)
            if now - self._saved > SAVE_SECONDS:
                self._save()

    def _judge(self) -> None:
        place, world = self._place, self._world
        losses, hits = np.sum(world.all(self._sums()), axis=0)
        count = len(self.images.dataset.held_out)
        self.history.append(
            Epoch(
                epoch=place.epoch + 1,
                rate=learner.rate(self._options.first_rate, place.epoch),
                loss=float(np.mean(world.all(place.loss / place.step))),
                held_out_loss=float(losses / count),
                held_out_top1=float(100 * hits / count),
                seconds=float(np.max(world.all(place.seconds))),
                waited=float(np.max(world.all(place.waited))),
            )
        )
        if self.best_epoch is self.history[-1]:
            self.best = self._learner.weights()
        self._place = _Place(place.epoch + 1)

    def _sums(self) -> tuple[float, int]:
        """Sum up the loss and the hits of what this process judges."""
        losses, hits = 0.0, 0
        for batch in self.images.held_out(self._world):
            logits = self._learner.logits(batch)
            losses += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            hits += int((logits.argmax(1) == batch.targets).sum())
        return losses, hits

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._world.leads:
            content = {
                "of": self._of,
                "learner": self._learner.state(),
                "place": dataclasses.astuple(self._place),
                "history": [dataclasses.astuple(epoch) for epoch in self.history],
                "best": self.best,
            }
            checkpoint.save(self._path, content)

    def _resume(self) -> None:
        found = checkpoint.load(self._path, of=self._of)
        if found:
            self._learner.restore(found["learner"])
            self._place = _Place(*found["place"])
            self.history = [Epoch(*row) for row in found["history"]]
            self.best = found["best"]
