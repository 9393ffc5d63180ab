"""An image file as a decoder gets it, with what its headers say that Pillow does not tell."""

from dataclasses import dataclass

from service.errors import UnsupportedType


@dataclass(frozen=True, slots=True)
class Samples:
    """What the numbers of a grey image mean: which is black and which is white.

    Without numbers they are those that the image holds: no format says what floats mean.
    """

    black: float | None = None
    white: float | None = None
    is_inverted: bool = False  # the smallest number is white
    offset: int = 0  # of signed numbers that Pillow takes for unsigned ones of 8 bits


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A file without what does not change how the image looks, and what decoding it takes."""

    data: bytes
    kind: str = ""  # Pillow's name for its format
    buffer: tuple[int, int] = (0, 0)  # width x height that the decoder keeps in memory early
    passes: float = 1.0  # how often it goes over the pixels
    pixels: int = 0  # that it decodes in all, where that is known
    profile: bytes = b""  # ICC
    variant: str = ""  # which kind of its format it is, where a decoder may lack it
    samples: Samples = Samples(0, 65535)
    orientation: int = 1  # of a TIFF; elsewhere it is in the EXIF
    frame: tuple[int, int, int, int] | None = None  # the part of the canvas that is drawn at all
    transparent: tuple[int, ...] = ()  # the grey or the colour that is, in samples of the file
    bits: int = 8  # of such a sample
    is_scaled: bool = True  # whether its decoder can leave pixels out
    tail: int | None = None  # bytes that may be missing before the end marker, which is missing


def refusal(kind: str, variant: str, advice: str = "save it as PNG or JPEG") -> UnsupportedType:
    """Say that a whole file is of a kind of its format that is not read."""
    return UnsupportedType(f"a kind of {kind} this service does not read ({variant}); {advice}")
