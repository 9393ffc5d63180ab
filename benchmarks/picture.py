"""A dashboard as an image: its panels' own queries, drawn where no Grafana is at hand.

Reads the JSON that Grafana reads and asks the Prometheus that it would ask; the layout, titles and
queries are the dashboard's, the pen is matplotlib's. Tables are left out: they have no image.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from benchmarks.prometheus import Prometheus

_POINTS = 240  # of a line
_COLUMNS = 24  # of Grafana's grid
_UNITS: Mapping[str, tuple[float, str]] = {
    "s": (1, " s"),
    "percentunit": (100, " %"),
    "bytes": (1 / 2**20, " MiB"),
}
_STYLE = {
    "figure.facecolor": "#111217",
    "axes.facecolor": "#181b1f",
    "axes.edgecolor": "#44474d",
    "axes.prop_cycle": cycler(
        color=["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9"]
    ),
}
_DRAWN = {"timeseries", "heatmap", "stat"}

Panel = dict[str, Any]
Series = tuple[str, list[tuple[float, float]]]  # its name, and (time, value) pairs


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: a job, from when to when (Unix seconds).

    `window` is that of rates, `hour` how many seconds the axis takes for one.
    """

    prometheus: Prometheus
    job: str
    start: float
    end: float
    window: str
    hour: float = 3600

    @property
    def hours(self) -> float:
        """How long it is on the axis."""
        return (self.end - self.start) / self.hour

    def series(self, panel: Panel) -> list[Series]:
        """Ask for all that a panel shows."""
        return [one for target in panel["targets"] for one in self._ask(target)]

    def _ask(self, target: Mapping[str, str]) -> list[Series]:
        query = self._filled(target["expr"])
        step = (self.end - self.start) / _POINTS
        answer = self.prometheus.get(
            "query_range", query=query, start=self.start, end=self.end, step=step
        )
        return [
            (_name(target["legendFormat"], one["metric"]), _points(one["values"]))
            for one in answer["result"]
        ]

    def _filled(self, query: str) -> str:
        given = {
            "job": self.job,
            "instance": ".+",
            "__rate_interval": self.window,
            "__range": f"{self.end - self.start:.0f}s",
        }
        return re.sub(r"\$(\w+)", lambda found: given[found[1]], query)


def draw(dashboard: Path, view: View, file: Path, *, height: int) -> None:
    """Draw the uppermost `height` rows of the dashboard's grid, as a PNG."""
    content = json.loads(dashboard.read_text("utf-8"))
    panels = [panel for panel in content["panels"] if _bottom(panel) <= height]
    with plt.style.context(["dark_background", _STYLE]):
        figure = plt.figure(figsize=(16, 0.36 * height), layout="constrained")
        grid = figure.add_gridspec(height, _COLUMNS)
        for panel in panels:
            if panel["type"] == "row":
                _head(figure, grid, panel)
            elif panel["type"] in _DRAWN:
                _panel(figure, grid, panel, view)
        figure.savefig(file, dpi=80)
        plt.close(figure)


def _bottom(panel: Panel) -> int:
    place = panel["gridPos"]
    return int(place["y"] + place["h"])


def _place(figure: Figure, grid: GridSpec, panel: Panel) -> Axes:
    place = panel["gridPos"]
    rows = slice(place["y"], place["y"] + place["h"])
    return figure.add_subplot(grid[rows, place["x"] : place["x"] + place["w"]])


def _head(figure: Figure, grid: GridSpec, panel: Panel) -> None:
    axes = _place(figure, grid, panel)
    axes.axis("off")
    axes.text(0, 0, panel["title"], fontsize=13, weight="bold", transform=axes.transAxes)


def _panel(figure: Figure, grid: GridSpec, panel: Panel, view: View) -> None:
    axes = _place(figure, grid, panel)
    axes.set_title(panel["title"], fontsize=10, loc="left")
    series = view.series(panel)
    scale, unit = _UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1, ""))
    if panel["type"] == "stat":
        last = series[0][1][-1][1] if series else math.nan
        axes.axis("off")
        axes.text(0, 0.4, f"{last * scale:.3g}{unit}", fontsize=22, transform=axes.transAxes)
    elif panel["type"] == "heatmap":
        _heat(axes, series, view)
    else:
        _lines(axes, series, scale, view)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")


def _lines(axes: Axes, series: Sequence[Series], scale: float, view: View) -> None:
    for name, points in series:
        times = [(time - view.start) / view.hour for time, _ in points]
        axes.plot(times, [value * scale for _, value in points], label=name, linewidth=1.2)
    axes.set_xlim(0, view.hours)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
    if series:
        axes.legend(fontsize=7, ncols=3, loc="upper left", frameon=False)


def _heat(axes: Axes, series: Sequence[Series], view: View) -> None:
    """Draw how many are in each bucket, of counts up to it."""
    bounded = sorted((float(name), points) for name, points in series if name != "+Inf")
    times = sorted({time for _, points in bounded for time, _ in points})
    place = {time: number for number, time in enumerate(times)}
    upto = np.zeros((len(bounded), len(times)))
    for row, (_, points) in enumerate(bounded):
        for time, value in points:
            upto[row, place[time]] = value
    counts = np.diff(upto, axis=0, prepend=0)
    axes.imshow(
        np.sqrt(np.maximum(counts, 0)),  # else the few slow ones could not be seen
        aspect="auto",
        origin="lower",
        extent=(0, view.hours, 0, len(bounded)),
        cmap="inferno",
    )
    labels = [f"{bound:g}" for bound, _ in bounded]
    axes.set_yticks([number + 0.5 for number in range(0, len(labels), 2)], labels[::2], fontsize=7)
    axes.tick_params(axis="x", labelsize=8)


def _points(values: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    return [(time, float(value)) for time, value in values]


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)
