"""The train command: a model, or several for an ensemble."""

from collections.abc import Sequence
from typing import Any

from rich.progress import Progress

from service.cli import console, progress
from service.models import calibration
from service.settings import Settings
from service.training import run
from service.training.dataset import Dataset
from service.training.options import Options
from service.training.run import Callbacks, TrainedModel
from service.training.trainer import Epoch


def train(settings: Settings, given: dict[str, Any]) -> int:
    """Train a model, or the members of an ensemble, on a folder of images for each class."""
    command = given.pop("command")
    several: Sequence[Options] = Options(**given).each()
    if len(several) > 1:
        several = _missing(settings, several, command)
    with progress.counting() as bar:
        outcomes = run.train_each(settings, several, command, _callbacks(bar))
        for options, outcome in zip(several, outcomes, strict=True):
            if outcome:
                _report(options, outcome)
    return 0


def _missing(settings: Settings, members: Sequence[Options], command: str) -> list[Options]:
    """Return the members that this command has not trained yet, and print the others."""
    missing = []
    for options in members:
        if run.is_done(settings, options, command):
            console.say(f"{options.name} is in the store already", stderr=True)
        else:
            missing.append(options)
    return missing


def _report(options: Options, outcome: TrainedModel) -> None:
    best, fit = outcome.best, outcome.calibration
    calibrated = (
        f"has {calibration.sentence(fit)}" if fit else f"is not calibrated: {outcome.uncalibrated}"
    )
    console.say(
        f"{options.name} is in the store, SHA-256 {outcome.sha256}: right on "
        f"{best.held_out_top1:.1f} % of held-out images, after epoch {best.epoch}\n"
        f"{options.name} {calibrated}\n"
        f"Tables and charts are in {outcome.folder}"
    )


def _callbacks(bar: Progress) -> Callbacks:
    """Report a training: a progress bar for each stage, and a line for its result."""
    task = bar.add_task("images", total=None)

    def scanned(done: int, of: int) -> None:
        bar.update(task, description="images", completed=done, total=of)

    def loaded(images: Dataset) -> None:
        for sentence in images.left_out:
            console.say(sentence, stderr=True)
        console.say(
            f"{len(images.classes)} classes, {len(images.training)} images to train on, "
            f"{len(images.held_out)} held out",
            stderr=True,
        )

    def stepped(epoch: int, step: int, of: int) -> None:
        bar.update(task, description=f"epoch {epoch}", completed=step, total=of)

    def ended(epoch: Epoch) -> None:
        console.say(
            f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, held out {epoch.held_out_loss:.3f}, "
            f"right {epoch.held_out_top1:.1f} %, {epoch.seconds:.0f} s, of which "
            f"{epoch.waited:.1f} s waiting for images",
            stderr=True,
        )

    return Callbacks(scanned, loaded, stepped, ended)
