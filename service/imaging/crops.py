"""Which crops of an image the network sees.

A *canvas* is a square of uint8 pixels cut from the resized image; a *view* is what the
network takes: a slice of a canvas, perhaps mirrored. Canvases are made beside the image, on
the host; views are cut from them on the device, so that no pixel crosses twice.

Whatever the image's shape, a canvas has a fixed size: only the wanted square is resampled,
never the whole image, so an image of 1x20000 costs what any other does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

CROP = 224  # pixels; what the paper's network takes
DENSE = 288  # pixels; the larger square of dense evaluation, a multiple of the net's stride of 32
SIDES = (CROP, DENSE)  # of the views that any plan has
PAPER_SCALES = (256, 288, 320, 352)  # short sides of the paper's section 7

# Four corners and the centre: how far across and down.
_FIVE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))

Rule = Literal["warp", "short"]
Interpolation = Literal["bilinear", "bicubic"]
Pixels = npt.NDArray[np.uint8]  # (side, side, 3)

_FILTERS: Mapping[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an image, in shares of its width and height from its left and top."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Resize:
    """How an image becomes `side` pixels: warped to a square, or its short side scaled."""

    rule: Rule
    side: int
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, slots=True)
class Canvas:
    """A square of `side` pixels out of the resized image.

    `across` and `down` say where: 0 is left or top, 0.5 the centre, 1 right or bottom.
    """

    resize: Resize
    side: int
    across: float = 0.5
    down: float = 0.5

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Give the square's left, top, right and bottom in the pixels of the source image."""
        wide, high = self._resized(width, height)
        left = round((wide - self.side) * self.across)
        top = round((high - self.side) * self.down)
        x, y = width / wide, height / high
        return (
            left * x,
            top * y,
            min((left + self.side) * x, width),
            min((top + self.side) * y, height),
        )

    def part(self, view: "View", size: tuple[int, int]) -> Box:
        """Give what a view of this canvas shows of an image of this width and height."""
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
    """The canvases to make of an image and the views to cut from them, in order.

    A canvas listed in `shrunk` is another canvas (by number) resized to `CROP` pixels.
    All views of a plan have one side, so that its rows can share a batch.
    """

    canvases: tuple[Canvas, ...]
    views: tuple[View, ...]
    shrunk: tuple[int, ...] = ()

    @property
    def side(self) -> int:
        """Pixels of every view's side."""
        return self.views[0].side

    @property
    def enough(self) -> int:
        """Pixels of an image's short side that are as good as more.

        Twice what the resized image has: resampling then averages what is beyond it anyway
        (Pillow's `reducing_gap` of 2.0, which its documentation calls close to exact).
        """
        return 2 * max(canvas.resize.side for canvas in self.canvases)

    def part(self, view: View, size: tuple[int, int]) -> Box:
        """Give what a view shows of an image of this width and height."""
        if view.canvas < len(self.canvases):
            return self.canvases[view.canvas].part(view, size)
        canvas = self.canvases[self.shrunk[view.canvas - len(self.canvases)]]
        return canvas.part(View(0, 0, 0, canvas.side), size)

    @property
    def nbytes(self) -> int:
        """Bytes of the canvases of one image."""
        return 3 * (sum(c.side**2 for c in self.canvases) + len(self.shrunk) * CROP**2)


@cache
def plan(name: str, resize: Resize, *, mirrors: bool = True) -> Plan:
    """Make the plan called `name` for a model whose manifest says `resize`.

    Without `mirrors`, for classes that are told by left and right, half of the views are left
    out of all plans but `single`.

    - `single`: the centre 224 of the resized image.
    - `ten`: its four corners and centre, and their mirrors (AlexNet's test); by short side
      the corners are those of the whole resized image, not of its centre square.
    - `paper`: 144 views, section 7 of the paper; always by short side.
    - `dense`: the centre 288 square and its mirror (VGG's test); always by short side.
    """
    made = _PLANS[name](resize)
    return made if mirrors else replace(made, views=tuple(v for v in made.views if not v.mirror))


def _single(resize: Resize) -> Plan:
    return Plan((Canvas(resize, CROP),), (View(0, 0, 0),))


def _ten(resize: Resize) -> Plan:
    if resize.rule == "warp":
        return Plan((Canvas(resize, resize.side),), _with_mirrors(_five(0, resize.side)))
    canvases = tuple(Canvas(resize, CROP, across, down) for across, down in _FIVE)
    return Plan(canvases, _with_mirrors([View(number, 0, 0) for number in range(len(_FIVE))]))


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


def _dense(resize: Resize) -> Plan:
    canvas = Canvas(Resize("short", DENSE, resize.interpolation), DENSE)
    return Plan((canvas,), _with_mirrors([View(0, 0, 0, DENSE)]))


_PLANS = {"single": _single, "ten": _ten, "paper": _paper, "dense": _dense}
NAMES = tuple(_PLANS)


def _five(canvas: int, side: int) -> list[View]:
    room = side - CROP
    return [View(canvas, round(room * down), round(room * across)) for across, down in _FIVE]


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
