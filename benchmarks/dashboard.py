"""Draws a Grafana dashboard as an image, with matplotlib and without Grafana.

Reads the dashboard's JSON for layout, titles and queries, and sends the queries to Prometheus.
Tables are left out.
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
Series = tuple[str, list[tuple[float, float]]]  # name, and (time, value) pairs


@dataclass(frozen=True, slots=True)
class View:
    """A job and a period (Unix seconds).

    `window` is the range of rates, `hour` the seconds that the axis shows as an hour.
    """

    prometheus: Prometheus
    job: str
    start: float
    end: float
    window: str
    hour: float = 3600

    @property
    def hours(self) -> float:
        """The length of the axis."""
        return (self.end - self.start) / self.hour

    def series(self, panel: Panel) -> list[Series]:
        """Query the series of a panel."""
        return [series for target in panel["targets"] for series in self._query(target)]

    def _query(self, target: Mapping[str, str]) -> list[Series]:
        query = self._substitute(target["expr"])
        step = (self.end - self.start) / _POINTS
        response = self.prometheus.get(
            "query_range", query=query, start=self.start, end=self.end, step=step
        )
        return [
            (_name(target["legendFormat"], series["metric"]), _points(series["values"]))
            for series in response["result"]
        ]

    def _substitute(self, query: str) -> str:
        variables = {
            "job": self.job,
            "instance": ".+",
            "__rate_interval": self.window,
            "__range": f"{self.end - self.start:.0f}s",
        }
        return re.sub(r"\$(\w+)", lambda match: variables[match[1]], query)


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
    position = panel["gridPos"]
    return int(position["y"] + position["h"])


def _axes(figure: Figure, grid: GridSpec, panel: Panel) -> Axes:
    position = panel["gridPos"]
    rows = slice(position["y"], position["y"] + position["h"])
    return figure.add_subplot(grid[rows, position["x"] : position["x"] + position["w"]])


def _head(figure: Figure, grid: GridSpec, panel: Panel) -> None:
    axes = _axes(figure, grid, panel)
    axes.axis("off")
    axes.text(0, 0, panel["title"], fontsize=13, weight="bold", transform=axes.transAxes)


def _panel(figure: Figure, grid: GridSpec, panel: Panel, view: View) -> None:
    axes = _axes(figure, grid, panel)
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
    """Draw the counts of buckets, from cumulative ones."""
    bounded = sorted((float(name), points) for name, points in series if name != "+Inf")
    times = sorted({time for _, points in bounded for time, _ in points})
    column = {time: number for number, time in enumerate(times)}
    cumulative = np.zeros((len(bounded), len(times)))
    for row, (_, points) in enumerate(bounded):
        for time, value in points:
            cumulative[row, column[time]] = value
    counts = np.diff(cumulative, axis=0, prepend=0)
    axes.imshow(
        np.sqrt(np.maximum(counts, 0)),  # makes small counts visible
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
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
