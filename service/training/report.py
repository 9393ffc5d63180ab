"""The report of a training: history and confusion matrix, as tables and as charts."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from service.errors import ModelError
from service.training.trainer import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # most classes for which a chart has a number in every cell

Confusion = npt.NDArray[np.int64]  # (classes, classes): images by true class (row) and prediction


def confusion(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> Confusion:
    """Count predictions by true class."""
    classes = logits.shape[1]
    cells = targets * classes + logits.argmax(1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def write_history(path: Path, history: Sequence[Epoch]) -> None:
    """Write a row for each epoch (CSV)."""
    names = [field.name for field in dataclasses.fields(Epoch)]
    _write_table(path, names, [dataclasses.astuple(epoch) for epoch in history])


def write_classes(path: Path, classes: Sequence[str], counts: Confusion) -> None:
    """Write a row for each class (CSV): its images, precision and recall."""
    right = counts.diagonal()
    images, predicted = counts.sum(1), counts.sum(0)
    rows = zip(
        classes,
        images,
        np.round(right / np.maximum(predicted, 1), 4),
        np.round(right / np.maximum(images, 1), 4),
        strict=True,
    )
    _write_table(path, ["class", "images", "precision", "recall"], [*rows])


def _write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(
            [[round(v, 5) if isinstance(v, float) else v for v in row] for row in rows]
        )


def draw_history(path: Path, history: Sequence[Epoch], title: str) -> None:
    """Draw the losses and the accuracy over the epochs (PNG)."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    epochs = [epoch.epoch for epoch in history]
    axes.plot(epochs, [epoch.loss for epoch in history], label="loss, patches", color="tab:gray")
    axes.plot(epochs, [epoch.held_out_loss for epoch in history], label="loss, held out")
    axes.set(title=title, xlabel="epoch", ylabel="cross-entropy, nats", ylim=(0, None))
    right = axes.twinx()
    top1 = [epoch.held_out_top1 for epoch in history]
    right.plot(epochs, top1, label="top-1, held out", color="tab:green")
    right.set(ylabel="per cent", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def draw_confusion(path: Path, classes: Sequence[str], counts: Confusion, title: str) -> None:
    """Draw a confusion matrix, rows the true classes (PNG)."""
    count = len(classes)
    side = min(4 + 0.35 * count, 16)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="taken for", ylabel="is")
    if count <= NUMBERED:
        axes.set_xticks(range(count), classes, rotation=90)
        axes.set_yticks(range(count), classes)
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"  # noqa: PLR2004 - half as dark
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    figure.savefig(path)


def check() -> None:
    """Raise `ModelError` without matplotlib: better before than after a training."""
    _figure(1, 1)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - not needed to serve
    except ImportError as error:
        raise ModelError(
            "training draws charts with matplotlib: pip install 'googlenet-service[train]'"
        ) from error
    return Figure((width, height), dpi=120, layout="constrained")
