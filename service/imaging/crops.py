"""Crop and scale an image to the network's input.

A *canvas* is a square of uint8 pixels cut from the resized image; a *view* is what the
network takes: a slice of a canvas, perhaps mirrored. Canvases are made on the host; views are
cut from them on the device, so that no pixel is transferred twice.

A canvas has a fixed size for images of any shape: only its square is resampled, never the whole
image, so an image of 1x20000 costs as much as any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

CROP = 224  # pixels; the input size of the paper's network
DENSE = 288  # pixels; the larger square of dense evaluation, a multiple of the net's stride of 32
SIDES = (CROP, DENSE)  # of the views of all plans
PAPER_SCALES = (256, 288, 320, 352)  # short sides of the paper's section 7

# Four corners and the centre: the position across and down.
_FIVE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))

# Of `ten`: the centre, its mirror, each corner once, half of them mirrored, then the rest.
_ADAPTIVE_ORDER = (4, 9, 0, 6, 7, 3, 5, 1, 2, 8)
_ADAPTIVE_STOPS = (1, 2, 6)

# Of `paper`: from a centre on every 89th of the 144, which are Fibonacci numbers: steps of the
# golden ratio, after any number of which sizes, squares, places and mirrors are seen evenly.
_PAPER_START, _PAPER_STRIDE = 10, 89
_PAPER_STOPS = (4, 8, 16, 32, 64)

Rule = Literal["warp", "short"]
Interpolation = Literal["bilinear", "bicubic"]
Pixels = npt.NDArray[np.uint8]  # (side, side, 3)

_FILTERS: Mapping[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True)
class Box:
    """A box in an image, as fractions of its width and height from its left and top."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Resize:
    """How an image is resized to `side` pixels: warped to a square, or by its short side."""

    rule: Rule
    side: int
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, slots=True)
class Canvas:
    """A square of `side` pixels of the resized image.

    `across` and `down` are its position: 0 is left or top, 0.5 the centre, 1 right or bottom.
    """

    resize: Resize
    side: int
    across: float = 0.5
    down: float = 0.5

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the square's left, top, right and bottom in pixels of the source image."""
        resized_width, resized_height = self._resized(width, height)
        left = round((resized_width - self.side) * self.across)
        top = round((resized_height - self.side) * self.down)
        x, y = width / resized_width, height / resized_height  # scale
        return (
            left * x,
            top * y,
            min((left + self.side) * x, width),
            min((top + self.side) * y, height),
        )

    def part(self, view: "View", size: tuple[int, int]) -> Box:
        """Return the part of an image of this width and height that a view of this canvas shows."""
        left, top, right, bottom = self.box(*size)
        x, y = (right - left) / self.side, (bottom - top) / self.side
        return Box(
            (left + view.left * x) / size[0],
            (top + view.top * y) / size[1],
            view.side * x / size[0],
            view.side * y / size[1],
        )

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        side = self.resize.side
        if self.resize.rule == "warp":
            return side, side
        short = min(width, height)
        return side * width // short, side * height // short


@dataclass(frozen=True, slots=True)
class View:
    """A square of `side` pixels at (`top`, `left`) of canvas number `canvas`."""

    canvas: int
    top: int
    left: int
    side: int = CROP
    mirror: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A view plan: the canvases to make of an image and the views to cut from them, in order.

    A canvas listed in `shrunk` is another canvas (by number) resized to `CROP` pixels.
    All views of a plan have the same side, so that its rows can share a batch. Looking may end
    after as many of the views as a number in `stops`, if the label is sure by then.
    """

    canvases: tuple[Canvas, ...]
    views: tuple[View, ...]
    shrunk: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()

    @property
    def stages(self) -> tuple[range, ...]:
        """The views that are computed together, one stage after the other."""
        ends = (0, *self.stops, len(self.views))
        return tuple(map(range, ends[:-1], ends[1:]))

    @property
    def side(self) -> int:
        """The side of every view, in pixels."""
        return self.views[0].side

    @property
    def min_side(self) -> int:
        """The short side in pixels at which an image may be decoded without a visible change.

        It is twice the resized image's: resampling averages any more pixels anyway (Pillow's
        `reducing_gap` of 2.0, which its documentation calls close to exact).
        """
        return 2 * max(canvas.resize.side for canvas in self.canvases)

    def part(self, view: View, size: tuple[int, int]) -> Box:
        """Return the part of an image of this width and height that a view shows."""
        if view.canvas < len(self.canvases):
            return self.canvases[view.canvas].part(view, size)
        canvas = self.canvases[self.shrunk[view.canvas - len(self.canvases)]]
        return canvas.part(View(0, 0, 0, canvas.side), size)

    @property
    def nbytes(self) -> int:
        """The bytes of one image's canvases."""
        return 3 * (sum(c.side**2 for c in self.canvases) + len(self.shrunk) * CROP**2)


@cache
def plan(name: str, resize: Resize, *, mirrors: bool = True) -> Plan:
    """Make the plan called `name` for a model with the manifest's `resize`.

    Without `mirrors`, for classes that differ in left and right, all plans but `single` have half
    of the views.

    - `single`: the centre 224 of the resized image.
    - `ten`: its four corners and centre, and their mirrors (AlexNet's test); by short side
      the corners are those of the whole resized image, not of its centre square.
    - `paper`: 144 views, section 7 of the paper; always by short side.
    - `dense`: the centre 288 square and its mirror (VGG's test); always by short side.
    - `adaptive`: those of `ten`, the centre first, as far as they are needed.
    - `adaptive:paper`: those of `paper`, as far as they are needed.
    """
    full = _PLANS[name](resize)
    return full if mirrors else _without_mirrors(full)


def _without_mirrors(full: Plan) -> Plan:
    views = tuple(view for view in full.views if not view.mirror)
    stops = dict.fromkeys(sum(not view.mirror for view in full.views[:stop]) for stop in full.stops)
    return replace(full, views=views, stops=tuple(stops))


def _single(resize: Resize) -> Plan:
    return Plan((Canvas(resize, CROP),), (View(0, 0, 0),))


def _ten(resize: Resize) -> Plan:
    if resize.rule == "warp":
        return Plan((Canvas(resize, resize.side),), _with_mirrors(_five(0, resize.side)))
    canvases = tuple(Canvas(resize, CROP, across, down) for across, down in _FIVE)
    return Plan(canvases, _with_mirrors([View(number, 0, 0) for number in range(len(_FIVE))]))


def _adaptive(resize: Resize) -> Plan:
    """Order the views of `ten` so that those before each stop are spread over the image."""
    ten = _ten(resize)
    views = tuple(ten.views[number] for number in _ADAPTIVE_ORDER)
    return replace(ten, views=views, stops=_ADAPTIVE_STOPS)


def _paper(resize: Resize) -> Plan:
    squares = tuple(
        Canvas(Resize("short", scale, resize.interpolation), scale, place, place)
        for scale in PAPER_SCALES
        for place in (0.0, 0.5, 1.0)
    )
    views = []
    for number, square in enumerate(squares):
        whole = View(len(squares) + number, 0, 0)
        views += [*_five(number, square.side), whole]
    return Plan(squares, _with_mirrors(views), shrunk=tuple(range(len(squares))))


def _adaptive_paper(resize: Resize) -> Plan:
    """Order the views of `paper` so that the first of them, however many, are spread."""
    paper = _paper(resize)
    count = len(paper.views)
    order = ((_PAPER_START + _PAPER_STRIDE * number) % count for number in range(count))
    return replace(paper, views=tuple(paper.views[n] for n in order), stops=_PAPER_STOPS)


def _dense(resize: Resize) -> Plan:
    canvas = Canvas(Resize("short", DENSE, resize.interpolation), DENSE)
    return Plan((canvas,), _with_mirrors([View(0, 0, 0, DENSE)]))


_PLANS = {
    "single": _single,
    "ten": _ten,
    "paper": _paper,
    "dense": _dense,
    "adaptive": _adaptive,
    "adaptive:paper": _adaptive_paper,
}
NAMES = tuple(_PLANS)


def _five(canvas: int, side: int) -> list[View]:
    margin = side - CROP
    return [View(canvas, round(margin * down), round(margin * across)) for across, down in _FIVE]


def _with_mirrors(views: list[View]) -> tuple[View, ...]:
    mirrored = [View(v.canvas, v.top, v.left, v.side, mirror=True) for v in views]
    return (*views, *mirrored)


def canvases(image: Image.Image, plan: Plan) -> tuple[Pixels, ...]:
    """Cut a plan's canvases from an upright RGB image, the shrunk ones last."""
    squares = [
        image.resize(
            (canvas.side, canvas.side),
            _FILTERS[canvas.resize.interpolation],
            canvas.box(image.width, image.height),
        )
        for canvas in plan.canvases
    ]
    filter_ = _FILTERS[plan.canvases[0].resize.interpolation]
    shrunk = [squares[number].resize((CROP, CROP), filter_) for number in plan.shrunk]
    return tuple(np.array(square) for square in [*squares, *shrunk])
