"""A training from end to end: a folder of images for each class in, a model in the store out."""

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
from service.training import dataset, learner, report, world
from service.training.dataset import Dataset, Statistics
from service.training.images import TrainingImages
from service.training.learner import Learner, Recipe
from service.training.options import ARCHITECTURE, WIDTH, Options
from service.training.trainer import Epoch, Trainer
from service.training.world import World

SIDE = 256  # pixels that an image's short side is resized to, where no other model says so

# What may change when a training that was cut short goes on.
_FREE = {"folder", "epochs", "patience", "workers", "description", "licence", "notice", "members"}


def _nobody(*_: object) -> None:
    """Hear nothing."""


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is told how a training goes; by default nobody."""

    looked: Callable[[int, int], None] = _nobody
    """Told how many images have been looked at, of how many."""
    found: Callable[[Dataset], None] = _nobody
    """Told what there is to learn from."""
    stepped: Callable[[int, int, int], None] = _nobody
    """Told the epoch, how many steps of it are done, and of how many."""
    ended: Callable[[Epoch], None] = _nobody
    """Told what came of an epoch."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A model that has been trained and is in the store."""

    sha256: str
    best: Epoch
    calibration: Calibration | None
    folder: Path
    """Of the tables and charts."""
    uncalibrated: str = ""
    """Why there is no calibration."""


def train(settings: Settings, options: Options, command: str, audience: Audience) -> Outcome | None:
    """Train a model and put it into the store; goes on where an earlier try was cut short.

    `command` is the line that does the same again, for the manifest. Under `torchrun`, every
    process gives its part, and only the first an outcome. Raises `ModelError` for a folder
    that cannot be learnt from, for a name that is taken, or where the loss grows to infinity, and
    `WrongOption` for options that contradict each other.
    """
    (outcome,) = train_each(settings, [options], command, audience)
    return outcome


def train_each(
    settings: Settings, several: Sequence[Options], command: str, audience: Audience
) -> Iterator[Outcome | None]:
    """Train one model after the other, as `train` does."""
    report.check()
    with world.joined(settings.device) as here:  # once: processes cannot meet again
        for options in several:
            yield _train(settings, options, command, audience, here)


def _train(
    settings: Settings, options: Options, command: str, audience: Audience, here: World
) -> Outcome | None:
    where = store.locate(settings.model_store)
    if options.start:
        _agree(options, where.manifest(options.start))
    with _own(where, options.name, here) as folder:
        told = audience if here.leads else Audience()
        found = dataset.read(
            options.folder,
            options.held_out,
            max_pixels=settings.max_pixels,
            progress=told.looked,
        )
        _check(options, found, here)
        told.found(found)
        start = weights.load(where, options.start) if options.start else None
        described = _described(options, found, start)
        images = TrainingImages(
            found, options, described.preprocessing.resized, settings.max_pixels
        )
        pupil = _learner(described, images, start, settings.precision, here)
        trainer = Trainer(pupil, images, here, _checkpoint(folder), of=_identity(options, found))
        for epoch in trainer.epochs(told.stepped):
            told.ended(epoch)
            if here.leads:
                report.write_history(folder / "history.csv", trainer.history)
        return _finish(where, described, options, command, trainer, folder) if here.leads else None


def is_done(settings: Settings, options: Options, command: str) -> bool:
    """Tell whether this very command has made a model already, to the end."""
    where = store.locate(settings.model_store)
    folder = where.root / options.name
    if not (folder / store.MANIFEST).is_file() or _checkpoint(folder / "training").is_file():
        return False
    record = where.manifest(options.name).training
    return record is not None and record.command == command


@contextmanager
def _own(where: Store, name: str, here: World) -> Iterator[Path]:
    """Give the folder of a training's own files, and keep other trainings out of it."""
    folder = where.root / name / "training"
    if not here.leads:
        yield folder
        return
    taken = (where.root / name / store.MANIFEST).is_file()
    if taken and not _checkpoint(folder).is_file():
        raise ModelError(f"there is a model {name!r} already; choose another --name")
    with where.locked(name):
        folder.mkdir(exist_ok=True)
        yield folder


def _agree(options: Options, start: Manifest) -> None:
    """Raise `WrongOption` if another network is wanted than that of the model to go on from."""
    for name in ("architecture", "width"):
        wanted, has = getattr(options, name), getattr(start, name)
        if wanted not in {None, has}:
            raise WrongOption(
                f"--{name} {wanted} is for a network that begins anew, and {options.start!r} has"
                f" {name} {has}: leave out --{name}, or --from"
            )


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _check(options: Options, found: Dataset, here: World) -> None:
    batch = min(options.batch, len(found.learnt))
    if batch % here.size:
        raise ModelError(
            f"a batch of {batch} images cannot be shared equally by {here.size} processes"
        )


def _identity(options: Options, found: Dataset) -> str:
    """Tell trainings apart that cannot go on from each other's checkpoints."""
    chosen = options.model_dump_json(exclude=_FREE)
    return hashlib.sha256(f"{chosen} {found.fingerprint}".encode()).hexdigest()


def _described(options: Options, found: Dataset, start: Model | None) -> Manifest:
    """Describe the model: with the preprocessing it goes on from, or its images' own."""
    if start:
        architecture, width = start.manifest.architecture, start.manifest.width
        preprocessing = start.manifest.preprocessing
    else:
        architecture = options.architecture or ARCHITECTURE
        width = options.width or WIDTH
        preprocessing = _preprocessing(found.statistics)
    return Manifest(
        architecture=architecture,
        width=width,
        version="1",
        description=options.description or f"trained on {options.folder.name}",
        licence=options.licence,
        classes=len(found.classes),
        labels="labels.tsv",
        notice=options.notice,
        preprocessing=preprocessing.model_copy(update={"mirror": options.mirror}),
    )


def _preprocessing(statistics: Statistics) -> Preprocessing:
    """Centre the pixels and give them deviation 1, which is what fresh weights expect."""
    red, green, blue = (round(1 / deviation, 6) for deviation in statistics.deviation)
    return Preprocessing(
        channels="RGB",
        mean=statistics.mean,
        scale=(red, green, blue),
        resize="short",
        side=SIDE,
    )


def _learner(
    described: Manifest, images: TrainingImages, start: Model | None, precision: str, here: World
) -> Learner:
    options = images.options
    torch.manual_seed(options.seed)
    network = _network(described, options, start)
    normalise = Normalise(described.preprocessing, torch.float32)
    if not start and not learner.normalises(network):
        first = next(iter(images.learnt(0, 0, here.alone)))  # the same for all processes
        learner.settle(network, normalise(first.pixels))
    fresh = _fresh(described) if start else ()
    recipe = Recipe(options.first_rate, options.decay, options.average, options.seed, fresh)
    return Learner(network, normalise, recipe, learner.number_format(precision, here.device), here)


def _network(described: Manifest, options: Options, start: Model | None) -> nn.Module:
    """Build it with auxiliary classifiers, which have nothing to help where layers are frozen."""
    network = weights.build(described, auxiliary=options.freeze is None)
    learner.initialise(network, options.dropout)
    if start:
        fresh = _fresh(described)
        kept = {name: value for name, value in start.state.items() if not name.startswith(fresh)}
        networks.fill(network, kept)
        for parameter in network.get_submodule(weights.architecture(described).last).parameters():
            nn.init.zeros_(parameter)  # knows nothing yet, and says so
    if options.freeze:
        learner.freeze(network, options.freeze)
    return network


def _fresh(described: Manifest) -> tuple[str, ...]:
    """Name what begins anew where the rest has learnt already."""
    architecture = weights.architecture(described)
    return (f"{architecture.last}.", *architecture.auxiliary)


def _finish(  # noqa: PLR0913, PLR0917 - all that is known at the end
    where: Store,
    described: Manifest,
    options: Options,
    command: str,
    trainer: Trainer,
    folder: Path,
) -> Outcome:
    """Put the best weights into the store, calibrated, with all that is to be known of them."""
    found, best = trainer.images.dataset, trainer.best_epoch
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
        fingerprint=found.fingerprint,
        images=len(found.learnt),
        held_out=len(found.held_out),
        epochs=best.epoch,
    )
    whole = described.model_copy(update={"accuracy": (accuracy,), "training": record})
    counts = report.confusion(logits, targets)
    report.write_classes(folder / "classes.csv", found.classes, counts)
    report.draw_history(folder / "curves.png", trainer.history, options.name)
    report.draw_confusion(folder / "confusion.png", found.classes, counts, options.name)
    where.describe(options.name, whole, found.classes)
    digest = weights.save(where, options.name, trainer.best, source="trained")
    calibrated, reason = _calibrated(logits, targets, digest)
    if calibrated:
        where.calibrate(options.name, calibrated)
    converter.publish(where, weights.load(where, options.name))
    _checkpoint(folder).unlink()
    return Outcome(digest, best, calibrated, folder, reason)


def _calibrated(
    logits: calibration.Floats, targets: calibration.Classes, digest: str
) -> tuple[Calibration | None, str]:
    """Calibrate on what was held out, or say why not: a model can be served without."""
    try:
        return calibration.calibrate(logits, targets, digest), ""
    except ModelError as error:
        return None, str(error)
