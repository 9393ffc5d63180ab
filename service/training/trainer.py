"""The trainer: epochs of training and evaluation, until the held-out loss stops improving."""

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
from service.training.process_group import ProcessGroup

SAVE_SECONDS = 300.0  # between two checkpoints within an epoch


@dataclass(frozen=True, slots=True)
class Epoch:
    """Results of an epoch, counted from 1; losses are mean cross-entropies in nats."""

    epoch: int
    rate: float
    loss: float
    held_out_loss: float
    held_out_top1: float
    """Per cent; like the loss, of the averaged weights on all held-out images."""
    seconds: float
    waited: float
    """Seconds of these in which the network waited for images."""


@dataclass(frozen=True, slots=True)
class _Position:
    """An epoch, counted from 0, how many of its steps are done, and their sums."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def after(self, loss: float, seconds: float, waited: float) -> "_Position":
        return _Position(
            self.epoch,
            self.step + 1,
            self.loss + loss,
            self.seconds + seconds,
            self.waited + waited,
        )


class Trainer:
    """Trains a learner on images; resumes from the checkpoint, if there is one."""

    def __init__(
        self,
        learner: Learner,
        images: TrainingImages,
        group: ProcessGroup,
        checkpoint_path: Path,
        *,
        identity: str,
    ) -> None:
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self._learner = learner
        self.images = images
        self._options = images.options
        self._group = group
        self._path = checkpoint_path
        self._identity = identity
        self._position = _Position()
        self._saved = time.monotonic()
        self._resume()

    @property
    def best_epoch(self) -> Epoch:
        """The epoch whose averaged weights are `best`."""
        return min(self.history, key=lambda epoch: epoch.held_out_loss)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` ones was an improvement."""
        if not self.history:
            return False
        idle = len(self.history) - self.best_epoch.epoch
        return len(self.history) >= self._options.epochs or idle >= self._options.patience

    def epochs(self, step_done: Callable[[int, int, int], None]) -> Iterator[Epoch]:
        """Train until it is over; `step_done` takes the epoch, its steps done and of how many."""
        while not self.is_over:
            self._train(step_done)
            self._evaluate()
            self._save()
            yield self.history[-1]

    def held_out(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the best weights' logits of all held-out images, and the images' classes."""
        self._learner.load_averaged(self.best)
        batches = self.images.held_out(self._group.single)
        parts = [(self._learner.logits(batch), batch.targets) for batch in batches]
        logits, targets = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return logits, targets

    def _train(self, step_done: Callable[[int, int, int], None]) -> None:
        steps = self.images.steps(self._group)
        position = self._position
        before = time.monotonic()
        for batch in self.images.training(position.epoch, position.step, self._group):
            loss = self._learner.step(batch, position.epoch, position.step)
            if not math.isfinite(loss):
                raise ModelError(
                    f"in epoch {position.epoch + 1} the loss is not finite; "
                    "a smaller --rate may help"
                )
            now = time.monotonic()
            position = self._position = position.after(loss, now - before, batch.waited)
            before = now
            step_done(position.epoch + 1, position.step, steps)
            if now - self._saved > SAVE_SECONDS:
                self._save()

    def _evaluate(self) -> None:
        position, gather = self._position, self._group.gather
        losses, hits = np.sum(gather(self._sums()), axis=0)
        count = len(self.images.dataset.held_out)
        self.history.append(
            Epoch(
                epoch=position.epoch + 1,
                rate=learner.rate(self._options.first_rate, position.epoch),
                loss=float(np.mean(gather(position.loss / position.step))),
                held_out_loss=float(losses / count),
                held_out_top1=float(100 * hits / count),
                seconds=float(np.max(gather(position.seconds))),
                waited=float(np.max(gather(position.waited))),
            )
        )
        if self.best_epoch is self.history[-1]:
            self.best = self._learner.weights()
        self._position = _Position(position.epoch + 1)

    def _sums(self) -> tuple[float, int]:
        """Sum up the loss and the hits of this process's held-out images."""
        losses, hits = 0.0, 0
        for batch in self.images.held_out(self._group):
            logits = self._learner.logits(batch)
            losses += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            hits += int((logits.argmax(1) == batch.targets).sum())
        return losses, hits

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._group.is_first:
            content = {
                "of": self._identity,
                "learner": self._learner.state(),
                "place": dataclasses.astuple(self._position),
                "history": [dataclasses.astuple(epoch) for epoch in self.history],
                "best": self.best,
            }
            checkpoint.save(self._path, content)

    def _resume(self) -> None:
        content = checkpoint.load(self._path, of=self._identity)
        if content:
            self._learner.restore(content["learner"])
            self._position = _Position(*content["place"])
            self.history = [Epoch(*row) for row in content["history"]]
            self.best = content["best"]
