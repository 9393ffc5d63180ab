"""A contact sheet: the strongest feature maps of a network for a view, as an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from service.imaging.crops import Pixels
from service.offline.visualize.deconvnet import Map, Projection, Stage

MAPS = 4  # of a stage, side by side

# Pixels.
_TILE, _GAP, _SPACE, _MARGIN = 128, 4, 28, 36
_LABELS = 170  # at the left of a row
_CELL = 3 * _TILE + 2 * _GAP
_ROW = _TILE + 40

_PAPER, _INK, _FADED, _MARK = "#f3f3f0", "#1a1c20", "#62676f", "#ff9500"
_LOW, _MIDDLE, _HIGH = "#12142b", "#b3365e", "#ffe9a8"  # of a feature map's activations

_THRESHOLD = 0.1  # of a projection's largest value; smaller ones are outside its square
_PADDING = 3  # pixels around the square
_CLIPPED = 1.0  # per cent of a projection's pixels, so that a few do not make the others grey

_LEGEND = """\
Each row is a stage of the network and its feature maps with the largest activations.
Left of three: the feature map. Middle: its largest activation alone, put back to pixels by a
deconvnet (Zeiler and Fergus 2013), around grey, each by its own largest values. Right: that
part of the image, which is marked on the map. Under them: the channel and the activation."""


@dataclass(frozen=True, slots=True)
class Square:
    """A square part of a view, in pixels."""

    left: int
    top: int
    side: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as in Pillow."""
        return self.left, self.top, self.left + self.side, self.top + self.side


def bounds(pixels: Map) -> Square:
    """Return the square around the large values of a projection, (side, side, 3)."""
    strength = np.abs(pixels).max(2)
    rows, columns = np.nonzero(strength >= _THRESHOLD * strength.max())
    full = len(pixels)
    side = min(int(max(np.ptp(rows), np.ptp(columns))) + 1 + 2 * _PADDING, full)
    return Square(_start(columns, side, full), _start(rows, side, full), side)


def _start(indices: npt.NDArray[np.intp], side: int, full: int) -> int:
    """Centre the indices in a range of length `side` within the view."""
    centred = (int(indices.min()) + int(indices.max()) + 1 - side) // 2
    return max(0, min(centred, full - side))


def draw(view: Pixels, stages: Sequence[Stage], title: str, *, is_bgr: bool) -> Image.Image:
    """Draw the stages of a view; `is_bgr` is whether the network's channels are BGR."""
    width = 2 * _MARGIN + _LABELS + MAPS * (_CELL + _SPACE) - _SPACE
    head = len(view) + _SPACE
    sheet = Image.new("RGB", (width, 2 * _MARGIN + head + _ROW * len(stages)), _PAPER)
    image = Image.fromarray(view)
    sheet.paste(image, (_MARGIN, _MARGIN))
    left = _MARGIN + len(view) + _SPACE
    _write(sheet, (left, _MARGIN), title, _INK, 30)
    _write(sheet, (left, _MARGIN + 60), _LEGEND, _FADED, 20)
    for row, stage in enumerate(stages):
        top = _MARGIN + head + _ROW * row
        _draw_row(sheet, top, image, stage, -1 if is_bgr else 1)
    return sheet


def _draw_row(sheet: Image.Image, top: int, image: Image.Image, stage: Stage, order: int) -> None:
    _write(sheet, (_MARGIN, top), stage.name, _INK, 21)
    rows, columns = stage.size
    size = f"{stage.channels} maps\nof {columns} x {rows}"
    _write(sheet, (_MARGIN, top + 30), size, _FADED, 17)
    for number, projection in enumerate(stage.projections):
        left = _MARGIN + _LABELS + number * (_CELL + _SPACE)
        tiles = _tiles(image, projection, projection.pixels[..., ::order])
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (left + column * (_TILE + _GAP), top))
        caption = f"channel {projection.channel}: {projection.activation:.4g}"
        _write(sheet, (left, top + _TILE + 4), caption, _FADED, 16)


def _tiles(image: Image.Image, projection: Projection, pixels: Map) -> Sequence[Image.Image]:
    """Draw the feature map, and the square of the projection and of the image."""
    square = bounds(pixels)
    parts = [part.crop(square.edges) for part in (_signed(pixels, square), image)]
    enlarged = [part.resize((_TILE, _TILE), Image.Resampling.BICUBIC) for part in parts]
    return _marked(projection.map, square, len(pixels)), *enlarged


def _marked(values: Map, square: Square, side: int) -> Image.Image:
    """Draw a feature map, with the square marked."""
    grey = Image.fromarray(np.uint8(np.round(255 * values.clip(0) / values.max())))
    tile = ImageOps.colorize(grey, _LOW, _HIGH, _MIDDLE).resize(
        (_TILE, _TILE), Image.Resampling.NEAREST
    )
    edges = [round(edge * (_TILE - 1) / side) for edge in square.edges]
    ImageDraw.Draw(tile).rectangle(edges, outline=_MARK, width=2)
    return tile


def _signed(pixels: Map, square: Square) -> Image.Image:
    """Draw signed values around grey, scaled by those in the square."""
    left, top, right, bottom = square.edges
    strength = np.abs(pixels[top:bottom, left:right]).max(2)
    # The percentile is 0 where fewer pixels than are clipped have a value.
    most = np.percentile(strength, 100 - _CLIPPED) or strength.max() or 1
    shades = 127.5 + 127.5 * pixels / most
    return Image.fromarray(np.uint8(np.round(shades.clip(0, 255))))


def _write(
    sheet: Image.Image, position: tuple[int, int], text: str, colour: str, size: int
) -> None:
    ImageDraw.Draw(sheet).text(position, text, colour, ImageFont.load_default(size), spacing=8)
