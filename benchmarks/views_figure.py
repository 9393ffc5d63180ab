"""Draws docs/views.svg: cost against accuracy, from the table of views in docs/views.md.

    python benchmarks/views_figure.py

The bars are 95 % Wilson intervals of a share of the photos. Colours follow the reader's light or
dark scheme.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PHOTOS = 100
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 30, 50, 60  # margins
COSTS = (1, 2, 5, 10, 20, 50, 100)  # marked on the axis, which is logarithmic
LOWEST, HIGHEST = 60, 100  # per cent
APART = 2  # pixels from a cost to each of its two bars, whose ends would meet

STYLE = """
  svg { background: #ffffff; font: 13px sans-serif }
  text { fill: #1f2328 } .small { font-size: 12px; fill: #59636e }
  .grid { stroke: #d1d9e0 } .axis { stroke: #59636e }
  .top1 { stroke: #0550ae; fill: #0550ae } .top5 { stroke: #bc4c00; fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 }
    text { fill: #f0f6fc } .small { fill: #9198a1 }
    .grid { stroke: #3d444d } .axis { stroke: #9198a1 }
    .top1 { stroke: #58a6ff; fill: #58a6ff } .top5 { stroke: #f0883e; fill: #f0883e }
  }
"""


@dataclass(frozen=True, slots=True)
class Point:
    """A view plan: the time on a CPU relative to `single`, and accuracy in per cent."""

    views: str
    cost: float
    top1: float
    top5: float


def read(page: str) -> list[Point]:
    """Read the page's table."""
    rows = re.findall(
        r"^\| `([\w:]+)` \|[^|]*\|[^|]*\| ([\d.]+) \|[^|]*\| (\d+) / (\d+) \|", page, re.MULTILINE
    )
    return [Point(name, float(cost), float(one), float(five)) for name, cost, one, five in rows]


def interval(percent: float) -> tuple[float, float]:
    """Give Wilson's 95 % interval for a share of `PHOTOS`, in per cent."""
    z, share = 1.96, percent / 100
    scale = 1 + z**2 / PHOTOS
    middle = (share + z**2 / (2 * PHOTOS)) / scale
    half = z * math.sqrt(share * (1 - share) / PHOTOS + z**2 / (4 * PHOTOS**2)) / scale
    return 100 * (middle - half), 100 * (middle + half)


def x(cost: float) -> float:
    """Place a cost, in pixels from the left."""
    share = math.log(cost / 0.8) / math.log(140 / 0.8)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def y(percent: float) -> float:
    """Place an accuracy, in pixels from the top."""
    share = (percent - LOWEST) / (HIGHEST - LOWEST)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def text(at: tuple[float, float], words: str, more: str = "") -> str:
    """Write words centred at a place."""
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="middle" {more}>{words}</text>'


def line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    """Draw a line."""
    places = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {places} class="{kind}"/>'


def axes() -> Iterator[str]:
    """Draw grid, axes and legend."""
    for percent in range(LOWEST, HIGHEST + 1, 10):
        yield line((LEFT, y(percent)), (WIDTH - RIGHT, y(percent)), "grid")
        yield text((LEFT - 22, y(percent) + 4), f"{percent} %", 'class="small"')
    for cost in COSTS:
        yield line((x(cost), y(LOWEST)), (x(cost), y(LOWEST) + 5), "axis")
        yield text((x(cost), y(LOWEST) + 20), f"{cost}", 'class="small"')
    yield line((LEFT, y(LOWEST)), (WIDTH - RIGHT, y(LOWEST)), "axis")
    yield text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14), "time on a CPU, relative to single")
    for at, kind, words in ((LEFT + 20, "top1", "top-1"), (LEFT + 110, "top5", "top-5")):
        yield f'<circle cx="{at}" cy="22" r="5" class="{kind}"/>'
        yield text((at + 28, 26), words)
    yield text((WIDTH - 230, 26), f"{PHOTOS} photos; bars: 95 % intervals", 'class="small"')


def drawn(point: Point) -> Iterator[str]:
    """Draw a view plan's two accuracies with their intervals, and its name."""
    is_dense = point.views == "dense"  # whose cost is close to that of `adaptive`
    side = -1 if is_dense else 1
    for kind, percent, shift in (("top1", point.top1, -1), ("top5", point.top5, 1)):
        at = x(point.cost) + shift * APART
        low, high = interval(percent)
        yield line((at, y(low)), (at, y(high)), kind)
        yield f'<circle cx="{at:.1f}" cy="{y(percent):.1f}" r="5" class="{kind}"/>'
        beside = (at + 18 * side, y(percent) + 4)
        yield text(beside, f"{percent:.0f}", 'class="small"')
    raised = 16 * is_dense
    yield text((x(point.cost), y(LOWEST) - 8 - raised), point.views, 'font-weight="bold"')


def figure(points: list[Point]) -> str:
    """Draw the figure: an SVG file."""
    title = "Accuracy of each view plan against its cost"
    parts = [f"<title>{title}</title>", f"<style>{STYLE}</style>", *axes()]
    for point in points:
        parts += drawn(point)
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    return f'<svg {head} role="img">\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    (DOCS / "views.svg").write_text(figure(read((DOCS / "views.md").read_text("utf-8"))), "utf-8")
