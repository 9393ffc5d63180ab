"""A training run: a folder of images for each class in, a model in the store out."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from service.engine import converter, networks, weights
from service.engine.torch_network import Normalise
from service.engine.weights import Model
from service.errors import ModelError, WrongOption
from service.models import calibration, store
from service.models.manifest import Accuracy, Calibration, Manifest, Preprocessing, Training
from service.models.store import Store
from service.settings import Settings
from service.training import dataset, learner, process_group, report
from service.training.dataset import Dataset, Statistics
from service.training.images import TrainingImages
from service.training.learner import Learner, Recipe
from service.training.options import ARCHITECTURE, WIDTH, Options
from service.training.process_group import ProcessGroup
from service.training.trainer import Epoch, Trainer

SIDE = 256  # pixels that an image's short side is resized to, where no other model says so

# Options that may change when an interrupted training resumes.
_FREE = {"folder", "epochs", "patience", "workers", "description", "licence", "notice", "members"}


def _ignore(*_: object) -> None:
    """Ignore a progress report."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that receive the progress of a training; by default none does anything."""

    image_read: Callable[[int, int], None] = _ignore
    """Takes how many images have been checked, and of how many."""
    dataset_read: Callable[[Dataset], None] = _ignore
    """Takes the images to train on."""
    step_done: Callable[[int, int, int], None] = _ignore
    """Takes the epoch, how many of its steps are done, and of how many."""
    epoch_done: Callable[[Epoch], None] = _ignore
    """Takes the results of an epoch."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model that is in the store."""

    sha256: str
    best: Epoch
    calibration: Calibration | None
    folder: Path
    """Of the tables and charts."""
    uncalibrated: str = ""
    """Why there is no calibration."""


def train(
    settings: Settings, options: Options, command: str, callbacks: Callbacks
) -> TrainedModel | None:
    """Train a model and put it into the store; an interrupted training resumes.

    `command` is the command line that repeats it, for the manifest. Under `torchrun`, every
    process computes its share, and only the first returns a model. Raises `ModelError` for a
    folder without enough images, a name that is taken, or a loss that grows to infinity, and
    `WrongOption` for options that contradict each other.
    """
    (model,) = train_each(settings, [options], command, callbacks)
    return model


def train_each(
    settings: Settings, several: Sequence[Options], command: str, callbacks: Callbacks
) -> Iterator[TrainedModel | None]:
    """Train one model after the other, as `train` does."""
    report.check()
    with process_group.join(settings.device) as group:  # once: processes cannot meet again
        for options in several:
            yield _train(settings, options, command, callbacks, group)


def _train(
    settings: Settings, options: Options, command: str, callbacks: Callbacks, group: ProcessGroup
) -> TrainedModel | None:
    models = store.locate(settings.model_store)
    if options.start:
        _check_network(options, models.manifest(options.start))
    with _locked_folder(models, options.name, group) as folder:
        callbacks = callbacks if group.is_first else Callbacks()
        images = dataset.read(
            options.folder,
            options.held_out,
            max_pixels=settings.max_pixels,
            progress=callbacks.image_read,
        )
        _check_batch(options, images, group)
        callbacks.dataset_read(images)
        start = weights.load(models, options.start) if options.start else None
        manifest = _manifest(options, images, start)
        loader = TrainingImages(
            images, options, manifest.preprocessing.resized, settings.max_pixels
        )
        learner_ = _learner(manifest, loader, start, settings.precision, group)
        identity = _identity(options, images)
        trainer = Trainer(learner_, loader, group, _checkpoint(folder), identity=identity)
        for epoch in trainer.epochs(callbacks.step_done):
            callbacks.epoch_done(epoch)
            if group.is_first:
                report.write_history(folder / "history.csv", trainer.history)
        if not group.is_first:
            return None
        return _publish(models, manifest, options, command, trainer, folder)


def is_done(settings: Settings, options: Options, command: str) -> bool:
    """Return whether this very command has trained the model to the end."""
    models = store.locate(settings.model_store)
    folder = models.root / options.name
    if not (folder / store.MANIFEST).is_file() or _checkpoint(folder / "training").is_file():
        return False
    record = models.manifest(options.name).training
    return record is not None and record.command == command


@contextmanager
def _locked_folder(models: Store, name: str, group: ProcessGroup) -> Iterator[Path]:
    """Yield the folder of a training's files, locked against other trainings."""
    folder = models.root / name / "training"
    if not group.is_first:
        yield folder
        return
    taken = (models.root / name / store.MANIFEST).is_file()
    if taken and not _checkpoint(folder).is_file():
        raise ModelError(f"there is a model {name!r} already; choose another --name")
    with models.locked(name):
        folder.mkdir(exist_ok=True)
        yield folder


def _check_network(options: Options, start: Manifest) -> None:
    """Raise `WrongOption` if options name another network than that of the start model."""
    for name in ("architecture", "width"):
        chosen, existing = getattr(options, name), getattr(start, name)
        if chosen not in {None, existing}:
            raise WrongOption(
                f"--{name} {chosen} is for a new network, and {options.start!r} has"
                f" {name} {existing}: leave out --{name}, or --from"
            )


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _check_batch(options: Options, images: Dataset, group: ProcessGroup) -> None:
    batch = min(options.batch, len(images.training))
    if batch % group.size:
        raise ModelError(
            f"a batch of {batch} images cannot be shared equally by {group.size} processes"
        )


def _identity(options: Options, images: Dataset) -> str:
    """Hash what has to be the same for a training to resume from a checkpoint."""
    chosen = options.model_dump_json(exclude=_FREE)
    return hashlib.sha256(f"{chosen} {images.fingerprint}".encode()).hexdigest()


def _manifest(options: Options, images: Dataset, start: Model | None) -> Manifest:
    """Describe the model: with the start model's preprocessing, or that of its images."""
    if start:
        architecture, width = start.manifest.architecture, start.manifest.width
        preprocessing = start.manifest.preprocessing
    else:
        architecture = options.architecture or ARCHITECTURE
        width = options.width or WIDTH
        preprocessing = _preprocessing(images.statistics)
    return Manifest(
        architecture=architecture,
        width=width,
        version="1",
        description=options.description or f"trained on {options.folder.name}",
        licence=options.licence,
        classes=len(images.classes),
        labels="labels.tsv",
        notice=options.notice,
        preprocessing=preprocessing.model_copy(update={"mirror": options.mirror}),
    )


def _preprocessing(statistics: Statistics) -> Preprocessing:
    """Centre the pixels and scale them to deviation 1, which new weights expect."""
    red, green, blue = (round(1 / deviation, 6) for deviation in statistics.deviation)
    return Preprocessing(
        channels="RGB",
        mean=statistics.mean,
        scale=(red, green, blue),
        resize="short",
        side=SIDE,
    )


def _learner(
    manifest: Manifest,
    images: TrainingImages,
    start: Model | None,
    precision: str,
    group: ProcessGroup,
) -> Learner:
    options = images.options
    torch.manual_seed(options.seed)
    network = _network(manifest, options, start)
    normalise = Normalise(manifest.preprocessing, torch.float32)
    if not start and not learner.has_norm(network):
        first = next(iter(images.training(0, 0, group.single)))  # the same for all processes
        learner.initialise_from_data(network, normalise(first.pixels))
    new = _new_layers(manifest) if start else ()
    recipe = Recipe(options.first_rate, options.decay, options.average, options.seed, new)
    dtype = learner.number_format(precision, group.device)
    return Learner(network, normalise, recipe, dtype, group)


def _network(manifest: Manifest, options: Options, start: Model | None) -> nn.Module:
    """Build the network, with auxiliary classifiers unless layers are frozen."""
    network = weights.build(manifest, auxiliary=options.freeze is None)
    learner.initialise(network, options.dropout)
    if start:
        new = _new_layers(manifest)
        kept = {name: value for name, value in start.state.items() if not name.startswith(new)}
        networks.fill(network, kept)
        for parameter in network.get_submodule(weights.architecture(manifest).last).parameters():
            nn.init.zeros_(parameter)  # uniform probabilities at first
    if options.freeze:
        learner.freeze(network, options.freeze)
    return network


def _new_layers(manifest: Manifest) -> tuple[str, ...]:
    """Return the name prefixes of layers that take no weights from a start model."""
    architecture = weights.architecture(manifest)
    return (f"{architecture.last}.", *architecture.auxiliary)


def _publish(  # noqa: PLR0913, PLR0917 - all that is known at the end
    models: Store,
    manifest: Manifest,
    options: Options,
    command: str,
    trainer: Trainer,
    folder: Path,
) -> TrainedModel:
    """Put the best weights, their calibration, manifest and report into the store."""
    images, best = trainer.images.dataset, trainer.best_epoch
    logits, targets = trainer.held_out()
    top5 = (np.argsort(-logits, 1)[:, :5] == targets[:, None]).any(1).mean()
    accuracy = Accuracy(
        dataset=f"held out of {options.folder.name}",
        views="single",
        top1=round(best.held_out_top1, 2),
        top5=round(100 * float(top5), 2),
    )
    record = Training(
        command=command,
        fingerprint=images.fingerprint,
        images=len(images.training),
        held_out=len(images.held_out),
        epochs=best.epoch,
    )
    manifest = manifest.model_copy(update={"accuracy": (accuracy,), "training": record})
    counts = report.confusion(logits, targets)
    report.write_classes(folder / "classes.csv", images.classes, counts)
    report.draw_history(folder / "curves.png", trainer.history, options.name)
    report.draw_confusion(folder / "confusion.png", images.classes, counts, options.name)
    models.describe(options.name, manifest, images.classes)
    digest = weights.save(models, options.name, trainer.best, source="trained")
    calibration_, reason = _calibrate(logits, targets, digest)
    if calibration_:
        models.calibrate(options.name, calibration_)
    converter.publish(models, weights.load(models, options.name))
    _checkpoint(folder).unlink()
    return TrainedModel(digest, best, calibration_, folder, reason)


def _calibrate(
    logits: calibration.Floats, targets: calibration.Classes, digest: str
) -> tuple[Calibration | None, str]:
    """Calibrate on held-out images, or return why not: a model can be served without."""
    try:
        return calibration.calibrate(logits, targets, digest), ""
    except ModelError as error:
        return None, str(error)
